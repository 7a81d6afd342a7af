/** Says in the browser what a run found that its user may not have meant, such as a mask in which nothing is painted. */

import { api, app, texts } from "./host.js";

/** @typedef {import("./texts.js").TextKey} TextKey */

/** Key of the notices in a node's results. */
const NOTICES = "rddm_notices";

app.registerExtension({
  name: "RDDM.Notices",
  setup() {
    /** What was told of the run that is going on: several nodes, or one for every picture of a list, may say the same. */
    const told = new Set();
    let run = "";
    api.addEventListener("executed", (/** @type {CustomEvent} */ { detail }) => {
      /** @type {TextKey[]} */
      const keys = detail.output?.[NOTICES] ?? [];
      if (detail.prompt_id !== run) told.clear();
      run = detail.prompt_id;
      for (const key of keys) {
        if (told.has(key)) continue;
        told.add(key);
        app.extensionManager.toast.add({ severity: "warn", summary: "RDDM", detail: texts()(key), life: 10000 });
      }
    });
  },
});
