import { Page } from "../parts/page";

export function EventsPage() {
  return (
    <Page title="Events">
      <p />
    </Page>
  );
}
