"""synthetic: a made-up plate as an Opera Phenix exports it."""
