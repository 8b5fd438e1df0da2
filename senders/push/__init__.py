"""Push: one provider, one file. Imports senders' protocol, never a Kafka client."""
