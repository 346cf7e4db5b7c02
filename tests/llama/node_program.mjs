// SPDX-License-Identifier: Apache-2.0
// Copyright The kvtrie authors
//
// A program on node-llama-cpp that knows nothing of kvtrie: two questions behind one long system prompt, greedily, with
// the package's chat session; then a text completion and an erased sequence. Prints JSON: what was answered, and when.
//   node node_program.mjs MODEL [WORDS_OF_SYSTEM_PROMPT] [QUESTION]
import {getLlama, LlamaChatSession, LlamaCompletion} from "node-llama-cpp";

const [, , modelPath, words = "300", question = "What is a prefix cache?"] = process.argv;
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: 1});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({contextSize: 4096, sequences: 1, threads: 1, flashAttention: false});
const sequence = context.getSequence();
const systemPrompt = Array.from({length: Number(words)}, (_, i) => `rule ${i % 97} of ${i}`).join(" ");
const session = new LlamaChatSession({contextSequence: sequence, systemPrompt});

const answers = [];
const timed = async (ask) => {
  const start = performance.now();
  let first = null;
  const text = await ask(() => { first ??= performance.now() - start; });
  answers.push({text, firstMs: first, totalMs: performance.now() - start});
};
const options = (onToken) => ({maxTokens: 12, temperature: 0, onToken});
await timed((onToken) => session.prompt(question, options(onToken)));
await timed((onToken) => session.prompt("And why?", options(onToken)));
session.dispose();
await sequence.clearHistory();
const completion = new LlamaCompletion({contextSequence: sequence});
await timed((onToken) => completion.generateCompletion(systemPrompt, options(onToken)));
console.log(JSON.stringify({answers, tokens: sequence.contextTokens.length}));
await context.dispose();
await model.dispose();
