package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// startProfiles has gateway and nodes profile themselves for the length of one measurement, if -profile asks for it and
// the side is ours. What it returns waits for the profiles, which are kept in the directory of -profile.
func (b *bench) startProfiles(ctx context.Context, name string, s side) (wait func() error) {
	if b.profiles == "" || s.isPeer() || b.deployment == nil {
		return func() error { return nil }
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	var failed error
	name = strings.NewReplacer(" ", "-", ",", "").Replace(name)
	for role, address := range b.deployment.http {
		all.Go(func() {
			err := fetchProfile(ctx, address, int(b.time.Seconds()), filepath.Join(b.profiles, name+"."+role+".pprof"))
			mu.Lock()
			defer mu.Unlock()
			failed = errors.Join(failed, err)
		})
	}
	return func() error { all.Wait(); return failed }
}

func fetchProfile(ctx context.Context, address string, seconds int, to string) error {
	url := fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", address, seconds)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, response.Status)
	}
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, response.Body)
	return errors.Join(err, f.Close())
}
