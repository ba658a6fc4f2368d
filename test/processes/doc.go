// Package processes tests Gantline from outside: real processes, their commands, NBD clients of others, kill -9.
//
// A test prints its seed; GANTLINE_SEED repeats it. GANTLINE_CAMPAIGN=n goes through all kill points and makes n rounds
// of what is random, where a plain run takes a slice. GANTLINE_LOGS=DIR keeps the whole logs of failed tests there.
package processes
