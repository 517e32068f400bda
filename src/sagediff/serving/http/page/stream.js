// The server's answers: a stream of events, or an error in words.

export class Refused extends Error {
  constructor(status, message, param) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

export function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** Ask for many images; `onEvent` is handed each event's object as it comes. Rejects with Refused, with the
 *  browser's AbortError, or with the browser's own error if the server cannot be reached. */
export async function makeImages(body, key, signal, onEvent) {
  const answer = await fetch("v1/images/batches", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers(key) },
    body: JSON.stringify(body),
    signal,
  });
  if (!answer.ok) throw await refusal(answer);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").find((line) => line.startsWith("data: "));
      if (data) onEvent(JSON.parse(data.slice("data: ".length)));
    }
  }
}

export async function refusal(answer) {
  let error = {};
  try {
    error = (await answer.json()).error ?? {};
  } catch {
    // a proxy's own page, which says nothing that the status does not
  }
  return new Refused(answer.status, error.message ?? `The server answered with status ${answer.status}.`, error.param);
}
