import { defineConfig } from "vitest/config";

// The page lies at /console/ beside the API, maybe below a proxy's prefix: all of its paths are relative.
// `npx vite` serves it while it is written, and asks a head on this machine for everything else.
const api = "http://127.0.0.1:8000";

export default defineConfig(({ command }) => ({
  base: command === "serve" ? "/console/" : "./",
  build: {
    outDir: "../src/shoal/console",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: false,
    chunkSizeWarningLimit: 400,
    target: "es2023",
  },
  server: { proxy: { "^/(?!console)": { target: api, changeOrigin: true } } },
  test: { include: ["src/**/*.test.{ts,tsx}"], environment: "node" },
}));
