"""What users write and read: the kinds, their conditions, and the documents that hub and sites exchange. No behaviour."""
