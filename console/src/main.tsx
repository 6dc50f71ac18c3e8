import "./look/base.css";
import "./look/parts.css";
import { render } from "preact";
import { follow } from "./api/live";
import { App } from "./app";
import "./parts/theme";

const root = document.getElementById("app");
if (root !== null) render(<App />, root);
void follow(new AbortController().signal);
