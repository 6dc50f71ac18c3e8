import { Page } from "../parts/page";

export function ConnectPage() {
  return (
    <Page title="Connect">
      <p />
    </Page>
  );
}
