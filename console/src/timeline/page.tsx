import { Page } from "../parts/page";

export function TimelinePage() {
  return (
    <Page title="Timeline">
      <p />
    </Page>
  );
}
