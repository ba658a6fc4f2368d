package copier

import (
	"context"
	"time"

	"golang.org/x/time/rate"
)

// Set says which regions need work. It must be safe for concurrent use.
type Set interface {
	Next(from int64) (region int64, ok bool) // the lowest at or above from
	Needs(region int64) bool
	Left() int64
}
type Config struct {
	Set          Set
	Region, Size int64 // bytes
	Work         func(ctx context.Context, off, n int64) error
	Parallel     int           // default 4
	Limit        *rate.Limiter // bytes a second of the background sweep; nil: none
	RetryMin     time.Duration // default 20 ms
	RetryMax     time.Duration // default 2 s
	Attempts     int           // failures of a demanded region before its waiters get the error; default 5
}
type Job struct{}
type Progress struct {
	Total, Left        int64 // regions
	Background, Demand int64 // bytes worked
	BytesPerSecond     float64
	ETA                time.Duration // 0: not known
	Err                error         // of the last failure, nil once work succeeds again
}

func New(cfg Config) *Job                                       { return &Job{} }
func (j *Job) Run(ctx context.Context) error                    { return nil }
func (j *Job) Demand(region int64) <-chan error                 { return nil } // buffered; nil error: done
func (j *Job) Wait(ctx context.Context, regions ...int64) error { return nil }
func (j *Job) Progress() Progress                               { return Progress{} }
