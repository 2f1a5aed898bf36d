"""What tests share: real servers, started and ended with the test, and waiting for conditions."""
