/** The head of a table's column of actions: only said, not shown. */
export function ActionsHead() {
  return (
    <th scope="col">
      <span class="offscreen">actions</span>
    </th>
  );
}
