"""E-mail: one provider, one file; mime.py builds the bytes. Imports senders' protocol, never a Kafka client."""
