package apply

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"gantline/internal/record"
)

// TestHistories plays the scripts of testdata: "command => expected answer" a line; a command without an answer must
// succeed.
func TestHistories(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var m *Machine
			for i, line := range strings.Split(string(text), "\n") {
				command, want, asks := strings.Cut(line, "=>")
				words := strings.Fields(command)
				if len(words) == 0 || strings.HasPrefix(line, "#") {
					continue
				}
				got := play(t, &m, words)
				if asks && got != strings.TrimSpace(want) || !asks && strings.HasPrefix(got, "error") {
					t.Fatalf("%s:%d: %s\n got %s\nwant %s", file, i+1, strings.TrimSpace(command), got, strings.TrimSpace(want))
				}
			}
		})
	}
}

var ops = map[string]record.Op{"write": record.OpWrite, "copy": record.OpCopy, "begin": record.OpBegin,
	"begin-at-once": record.OpBegin, "end": record.OpEnd}

func play(t *testing.T, m **Machine, words []string) string {
	number := func(i int, unsaid record.Seq) record.Seq {
		if i >= len(words) {
			return unsaid
		}
		n, err := strconv.ParseUint(words[i], 10, 64)
		if err != nil {
			t.Fatalf("%v: %v", words, err)
		}
		return record.Seq(n)
	}
	consistent := func() string {
		if (*m).State().Consistent {
			return "consistent"
		}
		return "inconsistent"
	}
	var err error
	switch words[0] {
	case "start":
		*m = New(State{Applied: number(1, 0), Consistent: words[2] == "consistent"})
		return ""
	case "store", "store-at":
		var flags uint8
		if words[1] == "begin-at-once" {
			flags = record.FlagAtOnce
		}
		seq, count := (*m).StoredSeq()+1, number(2, 1)
		if words[0] == "store-at" {
			seq, count = number(2, 0), 1
		}
		for ; count > 0 && err == nil; count-- {
			err = (*m).Stored(seq, ops[words[1]], flags)
			seq++
		}
		if err == nil {
			return fmt.Sprintf("stored %d", (*m).StoredSeq())
		}
	case "durable":
		(*m).Durable(number(1, 0))
	case "mark":
		(*m).Mark(number(1, 0))
	case "final":
		(*m).Final()
	case "cut":
		if err = (*m).Cut(number(1, 0)); err == nil {
			return fmt.Sprintf("stored %d", (*m).StoredSeq())
		}
	case "next":
		a := (*m).Next()
		if a.Wait != 0 {
			return fmt.Sprintf("wait: %v, %d", a.Wait, a.Seq)
		}
		out := fmt.Sprintf("apply %d-%d", a.From, a.To)
		if a.Whole {
			out += " whole"
		}
		if a.Breaks {
			(*m).Break()
			out += " breaks"
		}
		return out
	case "applied":
		if err = (*m).Applied(number(1, 0)); err == nil {
			return fmt.Sprintf("applied %d %s", (*m).State().Applied, consistent())
		}
	default:
		t.Fatalf("unknown command %v", words)
	}
	if err != nil {
		return "error: " + err.Error()
	}
	return ""
}
