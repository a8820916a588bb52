// Shows the OpenAPI document. A separate file, because the page forbids inline scripts.

const STREAM_MS = 2000;

const ui = SwaggerUIBundle({
  url: new URL("../openapi.json", document.currentScript.src).href,
  dom_id: "#docs",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  docExpansion: "list",
  operationsSorter: (one, other) => isDelete(one) - isDelete(other), // an order that is cancelled accepts nothing else
  requestInterceptor: (request) => {
    request.userFetch ??= fetchBeginning;
    return request;
  },
  responseInterceptor: (response) => {
    fillIds(response.obj);
    return response;
  },
  validatorUrl: null, // otherwise the document is sent to an external service
});

function isDelete(operation) {
  return Number(operation.get("method") === "delete");
}

/** Fetch a response. Of an endless stream, return what comes within two seconds: Swagger UI waits for the end. */
async function fetchBeginning(url, request) {
  const response = await fetch(url, request);
  if (!response.headers.get("Content-Type")?.startsWith("text/event-stream")) return response;
  const reader = response.body.getReader();
  setTimeout(() => reader.cancel(), STREAM_MS);
  const decoder = new TextDecoder();
  let text = "";
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    text += decoder.decode(piece.value, { stream: true });
  }
  return new Response(text, { status: response.status, headers: response.headers });
}

/** Fill the ids of a response into all paths, so that the next operation is about the same order and command. */
function fillIds(body) {
  const { order_id, command_id } = body?.events?.at(-1) ?? body?.orders?.[0] ?? body ?? {};
  const ids = { order_id, command_id, id: order_id };
  if (order_id === undefined) return; // as in the OpenAPI document itself
  for (const [path, operations] of ui.specSelectors.paths().entries()) {
    for (const method of operations.keys()) {
      for (const [name, id] of Object.entries(ids)) {
        if (id !== undefined && path.includes(`{${name}}`)) fillParameter([path, method], name, id);
      }
    }
  }
}

/** Set a parameter. One that is shown already is identified by itself, another one by its name. */
function fillParameter(operation, name, value) {
  ui.specActions.changeParam(operation, name, "path", value, false);
  const parameters = ui.specSelectors.specResolvedSubtree(["paths", ...operation])?.get("parameters");
  const shown = parameters?.find((parameter) => parameter.get("name") === name);
  if (shown) ui.specActions.changeParamByIdentity(operation, shown, value, false);
}
