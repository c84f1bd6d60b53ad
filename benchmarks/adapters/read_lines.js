// Stands in for `readLines` of https://deno.land/std@0.186.0/io/mod.ts, the one thing that dspy's
// runner takes from there, where that host cannot be reached. The time it takes is linear in the
// length of a line.
const NEWLINE = 10;
const decoder = new TextDecoder();

export async function* readLines(reader) {
  const buffer = new Uint8Array(1 << 16);
  let parts = [];
  for (let size; (size = await reader.read(buffer)) !== null;) {
    let start = 0;
    for (let end; (end = buffer.subarray(0, size).indexOf(NEWLINE, start)) >= 0; start = end + 1) {
      parts.push(buffer.slice(start, end));
      yield decoder.decode(await new Blob(parts).arrayBuffer());
      parts = [];
    }
    parts.push(buffer.slice(start, size));
  }
}
