// Shows the OpenAPI document. A separate file, because the page forbids inline scripts.
SwaggerUIBundle({
  url: new URL("../openapi.json", document.currentScript.src).href,
  dom_id: "#docs",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  docExpansion: "list",
  validatorUrl: null, // otherwise the document is sent to an external service
});
