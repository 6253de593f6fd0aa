"""`helm test`: the member's health port answers SERVING. Arguments: host:port, seconds to wait."""

import sys
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

address, until = sys.argv[1], time.monotonic() + float(sys.argv[2])
answer = "no answer"
while time.monotonic() < until:
    try:
        with grpc.insecure_channel(address) as channel:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=3)
            answer = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    except grpc.RpcError as error:
        answer = error.code().name
    if answer == "SERVING":
        print(f"{address}: {answer}")
        sys.exit(0)
    time.sleep(1)
sys.exit(f"{address}: {answer}")
