package statefile

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func reopen(t *testing.T, path, want string) (*File, string) {
	t.Helper()
	f, body, repaired, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(body) != want {
		t.Fatalf("body %q, want %q", body, want)
	}
	return f, repaired
}

func TestOneBadCopyIsRepairedAndTold(t *testing.T) {
	for _, suffix := range []string{".a", ".b"} {
		for name, spoil := range map[string]func(path string) error{
			"flipped": func(p string) error {
				raw, err := os.ReadFile(p)
				raw[headerSize] ^= 1
				return errors.Join(err, os.WriteFile(p, raw, 0o600))
			},
			"truncated": func(p string) error { return os.Truncate(p, headerSize) },
		} {
			t.Run(name+suffix, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "state")
				f, _ := reopen(t, path, "")
				if err := f.Save([]byte("one")); err != nil {
					t.Fatal(err)
				}
				if err := spoil(path + suffix); err != nil {
					t.Fatal(err)
				}
				if _, repaired := reopen(t, path, "one"); repaired == "" {
					t.Fatal("a bad copy was not told")
				}
				if _, repaired := reopen(t, path, "one"); repaired != "" {
					t.Fatalf("still told after the repair: %s", repaired)
				}
			})
		}
	}
}

func TestDeathBetweenTheCopies(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	f, _ := reopen(t, path, "")
	if err := f.Save([]byte("old")); err != nil {
		t.Fatal(err)
	}
	if err := f.SaveOne([]byte("new")); err != nil {
		t.Fatal(err)
	}
	if _, repaired := reopen(t, path, "new"); repaired != "" {
		t.Fatalf("an unfinished save is no damage: %s", repaired)
	}
	if err := os.Remove(path + ".a"); err != nil {
		t.Fatal(err)
	}
	reopen(t, path, "new")
	if err := os.Remove(path + ".b"); err != nil {
		t.Fatal(err)
	}
	reopen(t, path, "new")
}

func TestBothBadIsAnError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	f, _ := reopen(t, path, "")
	if err := f.Save([]byte("x")); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{".a", ".b"} {
		if err := os.WriteFile(path+s, []byte("rubbish"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, _, err := Open(path); !errors.Is(err, ErrDamaged) {
		t.Fatalf("got %v", err)
	}
}
