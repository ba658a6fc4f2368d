package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"time"
)

// endpoint is an export behind a unix socket.
type endpoint struct{ socket, export string }

// uri is the form that fio, libnbd and qemu understand.
func (e endpoint) uri() string { return "nbd+unix:///" + e.export + "?socket=" + e.socket }

// fioJob is one load of fio's nbd engine: one connection, many requests in flight.
type fioJob struct {
	rw    string // fio's word: randwrite, randread, write
	block int64  // bytes
	depth int
	fsync int // a flush after so many writes; 0: none
	rate  int // writes a second; 0: as fast as it goes
}

// fioResult is what one run reached.
type fioResult struct {
	iops  float64
	bytes float64 // a second
	p99   time.Duration
}

func runFio(ctx context.Context, e endpoint, j fioJob, size int64, t time.Duration, seed int) (fioResult, error) {
	args := []string{
		"--name=bench", "--ioengine=nbd", "--uri=" + e.uri(), "--rw=" + j.rw,
		"--bs=" + strconv.FormatInt(j.block, 10), "--iodepth=" + strconv.Itoa(j.depth),
		"--size=" + strconv.FormatInt(size, 10), "--time_based", "--ramp_time=1s",
		"--runtime=" + strconv.FormatFloat(t.Seconds(), 'f', 0, 64) + "s",
		"--norandommap", "--randseed=" + strconv.Itoa(seed), "--output-format=json", "--eta=never",
	}
	if j.fsync > 0 {
		args = append(args, "--fsync="+strconv.Itoa(j.fsync))
	}
	if j.rate > 0 {
		args = append(args, "--rate_iops="+strconv.Itoa(j.rate))
	}
	ctx, cancel := context.WithTimeout(ctx, 2*t+time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "fio", args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fioResult{}, fmt.Errorf("fio %s: %w\n%s%s", e.uri(), err, tail(stderr.String()), tail(stdout.String()))
	}
	return parseFio(stdout.Bytes())
}

// parseFio reads fio's JSON, which may stand behind lines of notes.
func parseFio(out []byte) (fioResult, error) {
	type direction struct {
		IOPS  float64 `json:"iops"`
		Bytes float64 `json:"bw_bytes"`
		Clat  struct {
			Percentile map[string]float64 `json:"percentile"`
		} `json:"clat_ns"`
	}
	var report struct {
		Jobs []struct {
			Error int       `json:"error"`
			Read  direction `json:"read"`
			Write direction `json:"write"`
		} `json:"jobs"`
	}
	at := bytes.IndexByte(out, '{')
	if at < 0 {
		return fioResult{}, fmt.Errorf("fio printed no report:\n%s", tail(string(out)))
	}
	if err := json.Unmarshal(out[at:], &report); err != nil {
		return fioResult{}, fmt.Errorf("fio's report: %w", err)
	}
	if len(report.Jobs) != 1 {
		return fioResult{}, fmt.Errorf("fio reported %d jobs, not one", len(report.Jobs))
	}
	job := report.Jobs[0]
	if job.Error != 0 {
		return fioResult{}, fmt.Errorf("fio's job ended with error %d", job.Error)
	}
	d := job.Write
	if job.Read.IOPS > 0 {
		d = job.Read
	}
	if d.IOPS == 0 {
		return fioResult{}, errors.New("fio did nothing")
	}
	return fioResult{iops: d.IOPS, bytes: d.Bytes, p99: time.Duration(d.Clat.Percentile["99.000000"])}, nil
}
