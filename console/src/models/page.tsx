import { Page } from "../parts/page";

export function ModelsPage() {
  return (
    <Page title="Models">
      <p />
    </Page>
  );
}
