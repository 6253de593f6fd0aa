"""Generated protobuf messages and gRPC stubs of Triskele; `make proto` renews them."""
