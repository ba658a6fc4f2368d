// Command gantline is every role and every tool of Gantline in one binary.
package main

func main() {}
