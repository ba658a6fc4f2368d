package block

import (
	"bytes"
	"errors"
	"os"
	"testing"
)

// A device that has grown keeps what it held, reads zeros behind it, and is as large when it is opened again.
func TestGrow(t *testing.T) {
	const size = 1<<20 + 512
	for name, d := range map[string]Grower{"file": newFile(t, size), "memory": NewCrashable(size, 1)} {
		if _, err := d.WriteAt([]byte("old"), size-3); err != nil {
			t.Fatal(name, err)
		}
		if err := d.Grow(size - 512); err != nil || d.Size() != size {
			t.Errorf("%s: a smaller size: %v, %d bytes", name, err, d.Size())
		}
		const more = 5<<20 + 1024
		if err := d.Grow(more); err != nil || d.Size() != more {
			t.Fatalf("%s: %v, %d bytes", name, err, d.Size())
		}
		if _, err := d.WriteAt(bytes.Repeat([]byte{7}, 4096), more-4096); err != nil {
			t.Fatal(name, err)
		}
		got := make([]byte, 6)
		if _, err := d.ReadAt(got, size-3); err != nil || string(got) != "old\x00\x00\x00" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if _, err := d.WriteAt([]byte{1}, more); !errors.Is(err, ErrRange) {
			t.Errorf("%s: a write behind the end: %v", name, err)
		}
		if f, ok := d.(*File); ok {
			if st, err := os.Stat(f.Path()); err != nil || st.Size() != more {
				t.Errorf("the file has %d bytes, %v", st.Size(), err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			if err := f.Grow(2 * more); !errors.Is(err, ErrClosed) {
				t.Errorf("closed: %v", err)
			}
		}
	}
}
