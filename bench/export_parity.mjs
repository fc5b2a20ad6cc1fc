// llama.cpp for export_parity.py, through npm's prebuilt node-llama-cpp: one JSON request on stdin, one answer out.
//   node export_parity.mjs FOLDER_WITH_node_modules MODEL.gguf
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { readFileSync } from "node:fs";

const [folder, modelPath] = process.argv.slice(2);
const require = createRequire(folder + "/");
const { getLlama } = await import(pathToFileURL(require.resolve("node-llama-cpp")).href);
const llama = await getLlama({ gpu: false, build: "never", skipDownload: true, maxThreads: 1, logLevel: "error" });
const model = await llama.loadModel({ modelPath });
const { texts, prompts, count, capacity } = JSON.parse(readFileSync(0, "utf8"));
const context = await model.createContext({ contextSize: capacity, sequences: 1, threads: 1 });
const sequence = context.getSequence();
const continued = [];
for (const ids of prompts) {
    await sequence.clearHistory();
    const found = [];
    for await (const token of sequence.evaluate(ids, { temperature: 0, yieldEogToken: true })) {
        found.push(token);
        if (found.length === count) break;
    }
    continued.push(found);
}
console.log(JSON.stringify({ tokenised: texts.map((text) => [...model.tokenize(text, false)]), continued }));
