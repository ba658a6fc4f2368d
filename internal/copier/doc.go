// Package copier runs block copies by bitmap: initial copy, resync, the filling of a move's target. A Job sweeps the
// regions that need work in the background, with a few workers and a rate limit, and serves demands for single regions
// ahead of the sweep. At any time at most one worker has a region: a demand for a region that the sweep is at waits for
// that work, it does not do it again.
//
// It knows neither what a region holds nor where it goes; Work does that, and Work's success must take the region out
// of the Set. It does not persist anything: the Set does.
package copier
