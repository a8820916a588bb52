"""The released Avro schemas: their files, a catalogue by id, and the rules for later versions."""
