// llama.cpp for decode_speed.py, through npm's prebuilt node-llama-cpp. One JSON command a line in, one answer out.
//   node llama_cpp_peer.mjs FOLDER_WITH_node_modules MODEL.gguf THREADS SLOTS CAPACITY
import { createInterface } from "node:readline";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [folder, modelPath, threads, slots, capacity] = process.argv.slice(2);
const require = createRequire(folder + "/");
const { getLlama } = await import(pathToFileURL(require.resolve("node-llama-cpp")).href);
const llama = await getLlama({ gpu: false, build: "never", skipDownload: true, maxThreads: Number(threads), logLevel: "error" });
const model = await llama.loadModel({ modelPath });
const context = await model.createContext({ contextSize: Number(capacity), sequences: Number(slots), threads: Number(threads), batchSize: 512 });
const sequences = Array.from({ length: Number(slots) }, () => context.getSequence());

async function continueGreedily(sequence, ids, count) {
    await sequence.clearHistory();
    const found = [];
    for await (const token of sequence.evaluate(ids, { temperature: 0, yieldEogToken: true })) {
        found.push(token);
        if (found.length === count) break;
    }
    return found;
}

console.log(JSON.stringify({ ready: true, threads: context.currentThreads }));
for await (const line of createInterface({ input: process.stdin })) {
    const { prompts, count } = JSON.parse(line);
    const cpu = process.cpuUsage(), start = performance.now();
    const tokens = await Promise.all(prompts.map((ids, i) => continueGreedily(sequences[i], ids, count)));
    const seconds = (performance.now() - start) / 1000, used = process.cpuUsage(cpu);
    console.log(JSON.stringify({ seconds, cpu_seconds: (used.user + used.system) / 1e6, tokens }));
}
