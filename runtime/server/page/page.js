// The playground and the live view. Everything goes through the server's public endpoints.

const at = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];
const SAMPLES = 60;

let chat = true;
let messages = [];
let running = null; // the AbortController of the request that streams
const rates = [];

const headers = () => {
  const key = at("key").value.trim();
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
};

async function get(path) {
  const answer = await fetch(path, { headers: headers() });
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error.message);
  return body;
}

function turnBefore(later, role) {
  const body = turn(role, "");
  at("output").insertBefore(body.parentElement, later.parentElement);
  return body;
}

function sampling() {
  const body = { model: at("model").value };
  for (const name of NUMBERS) {
    if (at(name).value !== "") body[name] = Number(at(name).value);
  }
  if (at("stop_text").value) body.stop = [at("stop_text").value];
  return body;
}

function requestBody(text) {
  const body = { ...sampling(), stream: true, stream_options: { include_usage: true } };
  if (!chat) return { ...body, prompt: text };
  const system = at("system").value.trim();
  const first = system ? [{ role: "system", content: system }] : [];
  return { ...body, messages: [...first, ...messages, { role: "user", content: text }] };
}

function turn(role, text) {
  const block = document.createElement("div");
  const name = document.createElement("b");
  const body = document.createElement("span");
  block.className = `turn ${role}`;
  name.textContent = role;
  body.textContent = text;
  block.append(name, body);
  at("output").append(block);
  at("output").scrollTop = at("output").scrollHeight;
  return body;
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const body = JSON.parse(data);
      if (body.error) throw new Error(body.error.message);
      yield body;
    }
  }
}

async function send(text) {
  const body = requestBody(text);
  const path = chat ? "v1/chat/completions" : "v1/completions";
  turn(chat ? "user" : "prompt", text);
  const target = turn(chat ? "assistant" : "completion", "");
  const started = performance.now();
  let first = null;
  let thoughts = null;
  const signal = running.signal;
  const answer = await fetch(path, {
    method: "POST", headers: headers(), body: JSON.stringify(body), signal,
  });
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  for await (const chunk of events(answer)) {
    const choice = chunk.choices[0];
    const piece = (choice && (chat ? choice.delta.content : choice.text)) || "";
    const thought = (choice && chat && choice.delta.reasoning_content) || "";
    if ((piece || thought) && first === null) first = performance.now() - started;
    if (thought) {
      thoughts ??= turnBefore(target, "thoughts");
      thoughts.textContent += thought;
    }
    target.textContent += piece;
    at("output").scrollTop = at("output").scrollHeight;
    if (chunk.usage) showUsage(chunk.usage, first, performance.now() - started);
  }
  if (chat) {
    messages.push({ role: "user", content: text });
    messages.push({ role: "assistant", content: target.textContent });
  }
}

function showUsage(usage, first, total) {
  const seconds = Math.max(total - (first ?? 0), 1) / 1000;
  const rate = (usage.completion_tokens - 1) / seconds;
  at("usage").textContent =
    `${usage.prompt_tokens} + ${usage.completion_tokens} tokens, first after ` +
    `${(first ?? total).toFixed(0)} ms, then ${Math.max(rate, 0).toFixed(1)} tokens/s`;
}

async function submit(event) {
  event.preventDefault();
  const text = at("prompt").value;
  if (!text.trim() || running) return;
  running = new AbortController();
  at("send").disabled = true;
  at("stop").hidden = false;
  at("prompt").value = "";
  try {
    await send(text);
  } catch (error) {
    const last = at("output").lastElementChild;
    if (last && !last.lastChild.textContent) last.remove(); // a reply that never began
    if (error.name !== "AbortError") turn("error", error.message);
  } finally {
    running = null;
    at("send").disabled = false;
    at("stop").hidden = true;
  }
}

function show(live) {
  const blocks = live.kv_blocks_used + live.kv_blocks_cached + live.kv_blocks_free || 1;
  const share = (count) => `${(100 * count) / blocks}%`;
  at("running").textContent = live.running;
  at("waiting").textContent = live.waiting;
  at("rate").textContent = live.tokens_per_second.toFixed(live.tokens_per_second < 100 ? 1 : 0);
  at("ended").textContent = live.requests_ended;
  at("used").textContent = live.kv_blocks_used;
  at("cached").textContent = live.kv_blocks_cached;
  at("free").textContent = live.kv_blocks_free;
  at("bar-used").style.width = share(live.kv_blocks_used);
  at("bar-cached").style.width = share(live.kv_blocks_cached);
  const { prefix_cache_queries: asked, prefix_cache_hits: found } = live;
  at("prefix").textContent = asked ? `${percent(found / asked)} of prompt tokens were known; ` +
    `${count(live.preemptions, "preemption")}, ${live.swaps} by swap` : "";
  const rows = [live.time_to_first_token_ms, live.inter_token_latency_ms];
  rows.forEach((row, index) => {
    const cells = at("latency").rows[index].cells;
    ["p50", "p90", "p99"].forEach((name, column) => {
      cells[column + 1].textContent = row ? row[name].toFixed(row[name] < 100 ? 1 : 0) : "-";
    });
  });
  draw(live.tokens_per_second);
}

function showKernels({ step }) {
  if (!step) return;
  const { T, N, L } = step.dims;
  const share = step.share === null ? "limit not measured here" : `${percent(step.share)} of limit`;
  at("step").textContent = `${step.entry}: ${count(T, "token")} of ${count(N, "sequence")}, ` +
    `${L} tokens long: ${(step.seconds * 1000).toFixed(2)} ms, ${share}`;
  at("kernels").replaceChildren(...step.kernels.map(kernelRow));
}

const percent = (share) => `${(100 * share).toFixed(0)}%`;
const count = (number, name) => `${number} ${name}${number === 1 ? "" : "s"}`;

function kernelRow(kernel) {
  const row = document.createElement("tr");
  const name = document.createElement("th");
  name.scope = "row";
  name.textContent = kernel.ops.replaceAll("+", "+\u200b") || kernel.template; // lines may break
  const rate = kernel.bytes / kernel.seconds / 1e9;
  const values = [kernel.count, (kernel.seconds * 1000).toFixed(3), rate.toFixed(1),
    kernel.share === null ? "-" : percent(kernel.share)];
  row.append(name, ...values.map((value) => {
    const cell = document.createElement("td");
    cell.textContent = value;
    return cell;
  }));
  row.lastChild.className = "share";
  row.lastChild.style.setProperty("--part", percent(Math.min(1, kernel.share ?? 0)));
  return row;
}

function draw(rate) {
  rates.push(rate);
  if (rates.length > SAMPLES) rates.shift();
  const most = Math.max(...rates, 1);
  const points = rates.map((value, index) => {
    const x = ((SAMPLES - rates.length + index) * 240) / (SAMPLES - 1);
    return `${x.toFixed(1)},${(47 - (45 * value) / most).toFixed(1)}`;
  });
  at("line").setAttribute("points", points.join(" "));
}

function state(text, bad) {
  at("state").textContent = text;
  at("state").className = bad ? "state bad" : "state";
}

async function watch() {
  try {
    if (!at("model").options.length) await listModels();
    const { ready, models } = await get("stats");
    const live = models[at("model").value];
    state(ready ? "ready" : "not taking requests", !ready);
    if (live) {
      show(live);
      showKernels(await get(`kernels?model=${encodeURIComponent(at("model").value)}`));
    }
  } catch (error) {
    state(error.message, true);
  }
  setTimeout(watch, 1000);
}

async function listModels() {
  const { data } = await get("v1/models");
  at("model").replaceChildren(...data.map(({ id }) => new Option(id, id)));
}

function mode(toChat) {
  chat = toChat;
  at("mode-chat").setAttribute("aria-pressed", chat);
  at("mode-text").setAttribute("aria-pressed", !chat);
  clear();
}

function clear() {
  messages = [];
  at("output").replaceChildren();
  at("usage").textContent = "";
}

at("form").addEventListener("submit", submit);
at("stop").addEventListener("click", () => running?.abort());
at("clear").addEventListener("click", clear);
at("model").addEventListener("change", () => rates.splice(0));
at("mode-chat").addEventListener("click", () => mode(true));
at("mode-text").addEventListener("click", () => mode(false));
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey) submit(event);
});
watch();
