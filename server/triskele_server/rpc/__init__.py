"""gRPC with mutual TLS: channels, servers, who may call what, and the ports for probes."""
