// Framing between server and worker; the format is described in rewarm/wire.py.

export const RUN = 1, REPLY = 2, HELLO = 3, LOAD = 4, LOADED = 5, FAILED = 6;
export const KIND_JSON = 0, KIND_RAW = 1, KIND_V2 = 2, KIND_LAMBDA = 3;
export const FORM_JSON = 0, FORM_RAW = 1;
export const FLAG_FUNCTION_ERROR = 1;
export const ANSWER_BYTES_MAX = 64 << 20;

const HEAD_BYTES = 20;
const ITEM_BYTES = 8;
const ANSWER_BYTES = 10;
const NOTHING = Buffer.alloc(0);

/** Cuts a stream of chunks into frames. */
export class Reader {
  #chunks = [];
  #bytes = 0;

  /** The frames that are complete now: `{type, flag, count, number, sequence, bytes}`. */
  feed(chunk) {
    this.#chunks.push(chunk);
    this.#bytes += chunk.length;
    const frames = [];
    while (this.#bytes >= HEAD_BYTES) {
      if (this.#chunks[0].length < HEAD_BYTES) this.#join();
      const head = this.#chunks[0];
      const length = Number(head.readBigUInt64LE(0));
      if (this.#bytes < length) break; // joined only when it is all there: a long frame is copied once
      if (head.length < length) this.#join();
      const bytes = this.#chunks[0].subarray(0, length);
      this.#chunks[0] = this.#chunks[0].subarray(length);
      this.#bytes -= length;
      if (this.#bytes === 0) this.#chunks = [];
      frames.push({
        type: bytes.readUInt8(8), flag: bytes.readUInt8(9), count: bytes.readUInt16LE(10),
        number: bytes.readUInt32LE(12), sequence: bytes.readUInt32LE(16), bytes,
      });
    }
    return frames;
  }

  #join() {
    this.#chunks = [Buffer.concat(this.#chunks)];
  }
}

/** The JSON object of a frame without items. */
export function decodePlain(frame) {
  return JSON.parse(frame.bytes.toString("utf8", HEAD_BYTES));
}

/** A frame without items: HELLO, LOADED, FAILED. */
export function encodePlain(type, value, number = 0) {
  const body = value === undefined ? NOTHING : Buffer.from(JSON.stringify(value));
  return Buffer.concat([makeHead(HEAD_BYTES + body.length, type, 0, 0, number, 0), body]);
}

/** The requests of a RUN frame: `{kind, meta, body}`, meta and body as bytes. */
export function decodeRun({ bytes, flag, count }) {
  const items = [];
  const uniform = (flag & 1) === 1;
  let at = HEAD_BYTES;
  let rest = at + (uniform ? 4 : ITEM_BYTES) * count;
  const take = (length) => bytes.subarray(rest, (rest += length));
  for (let n = 0; n < count; n++) {
    if (uniform) {
      items.push({ kind: flag >> 1, meta: NOTHING, body: take(bytes.readUInt32LE(at)) });
      at += 4;
    } else {
      const meta = take(bytes.readUInt16LE(at + 2));
      items.push({ kind: bytes.readUInt8(at), meta, body: take(bytes.readUInt32LE(at + 4)) });
      at += ITEM_BYTES;
    }
  }
  return items;
}

/** One REPLY frame of answers `{status, form, flags, body}`. */
export function encodeReply(answers, sequence, runUs) {
  const { form } = answers[0];
  const uniform = answers.every((a) => a.status === 200 && a.flags === 0 && a.form === form);
  const heads = Buffer.alloc((uniform ? 4 : ANSWER_BYTES) * answers.length);
  let at = 0;
  for (const { status, form, flags, body } of answers) {
    if (!uniform) {
      heads.writeUInt16LE(status, at);
      heads.writeUInt8(form, at + 2);
      heads.writeUInt8(flags, at + 3);
      at += 6; // and no meta
    }
    at = heads.writeUInt32LE(body.length, at);
  }
  const bodies = answers.map((answer) => answer.body);
  const length = bodies.reduce((sum, body) => sum + body.length, HEAD_BYTES + heads.length);
  const flag = uniform ? 1 + 2 * form : 0;
  const head = makeHead(length, REPLY, flag, answers.length, Math.min(runUs, 0xffffffff), sequence);
  return Buffer.concat([head, heads, ...bodies], length);
}

function makeHead(length, type, flag, count, number, sequence) {
  const head = Buffer.alloc(HEAD_BYTES);
  head.writeBigUInt64LE(BigInt(length), 0);
  head.writeUInt8(type, 8);
  head.writeUInt8(flag, 9);
  head.writeUInt16LE(count, 10);
  head.writeUInt32LE(number, 12);
  head.writeUInt32LE(sequence, 16);
  return head;
}
