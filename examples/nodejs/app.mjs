// Word counts in the style of an AWS Lambda function for Node.js; nothing here knows about rewarm.

const WORD = /[\p{L}\p{N}]+(?:['’-][\p{L}\p{N}]+)*/gu;

function count(text, top) {
  const words = (text.match(WORD) ?? []).map((word) => word.toLowerCase());
  const tally = new Map();
  for (const word of words) tally.set(word, (tally.get(word) ?? 0) + 1);
  const ranked = [...tally].sort(([a, times], [b, others]) => others - times || (a < b ? -1 : 1));
  return { words: words.length, distinct_words: tally.size, top: ranked.slice(0, top) };
}

/** The counts of `event.text`, with the `event.top` commonest words (5 when left out). */
export async function handler(event, context) {
  if (typeof event.text !== "string") throw new TypeError("the event needs a string called 'text'");
  return {
    counts: count(event.text, event.top ?? 5),
    request_id: context.awsRequestId,
    remaining_ms: context.getRemainingTimeInMillis(),
  };
}

/** The number of words of each text of a batch: as many answers as events, in their order. */
export function lengths(events) {
  return events.map((event) => (event.text.match(WORD) ?? []).length);
}
lengths.rewarm = { batched: true, batching: "dynamic:max_size=32,max_wait=10ms", memory: "256MB" };
