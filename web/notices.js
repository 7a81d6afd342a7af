/** Says in the browser what a run found that its user may not have meant, such as a mask in which nothing is painted. */

import { api, app, texts } from "./host.js";

/** @typedef {import("./texts.js").TextKey} TextKey */

/** Key of the notices in a node's results. */
const NOTICES = "rddm_notices";

app.registerExtension({
  name: "RDDM.Notices",
  setup() {
    api.addEventListener("executed", (/** @type {CustomEvent} */ { detail }) => {
      /** @type {TextKey[]} */
      const keys = detail.output?.[NOTICES] ?? [];
      for (const key of new Set(keys)) {
        app.extensionManager.toast.add({ severity: "warn", summary: "RDDM", detail: texts()(key), life: 10000 });
      }
    });
  },
});
