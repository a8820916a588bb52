"""The released Avro schemas: their files, the catalogue of them by id, and what a later version may change."""
