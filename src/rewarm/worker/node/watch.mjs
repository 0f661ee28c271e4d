// Loader hooks, on a thread of their own: tell the port the address of every module that is imported.

let port;

export function initialize(data) {
  port = data.port;
}

export async function resolve(specifier, context, next) {
  const found = await next(specifier, context);
  port.postMessage(found.url);
  return found;
}
