// Shows our document. A file of its own, because the page allows no script inside itself.
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  docExpansion: "list",
  validatorUrl: null, // else the document would be sent to a service of others
});
