package archtest

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// graph has the imports of each package, without those of its tests. Packages of the module are named from its root.
type graph map[string][]string

// violations lists every import that a rule forbids, with the rule's reason.
func violations(g graph, module string, rules []rule) []string {
	var found []string
	for pkg, imports := range g {
		for _, r := range rules {
			if !matchAny(r.from, pkg) || matchAny(r.except, pkg) {
				continue
			}
			for _, imported := range imports {
				name, isOurs := strings.CutPrefix(imported, module+"/")
				if isOurs == r.std || name == pkg {
					continue
				}
				if matchAny(r.deny, name) && !matchAny(r.allow, name) {
					found = append(found, fmt.Sprintf("%s imports %s: %s", pkg, imported, r.why))
				}
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

func matchAny(patterns []string, pkg string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		if p == ours {
			return true
		}
		if below, ok := strings.CutSuffix(p, "/..."); ok {
			return pkg == below || strings.HasPrefix(pkg, below+"/")
		}
		return pkg == p
	})
}

// load reads the import clauses of every Go file below root. It reads files of all platforms and build tags: a rule
// broken under a tag is broken.
func load(root string) (graph, error) {
	g := graph{}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			base := d.Name()
			if name != root && (base[0] == '.' || base[0] == '_' || base == "testdata" || base == "build" || base == "node_modules") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(name))
		if err != nil {
			return err
		}
		pkg := path.Clean(filepath.ToSlash(dir))
		if _, ok := g[pkg]; !ok {
			g[pkg] = nil // known, though it may import nothing
		}
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			g[pkg] = append(g[pkg], imported)
		}
		return nil
	})
	return g, err
}

// moduleRoot finds go.mod above the test's directory and the module's path in it.
func moduleRoot(t *testing.T) (root, module string) {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil {
			first, _, _ := strings.Cut(string(data), "\n")
			return dir, strings.TrimSpace(strings.TrimPrefix(first, "module"))
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
		dir = filepath.Dir(dir)
	}
}

func TestImportsFollowTheRules(t *testing.T) {
	root, module := moduleRoot(t)
	g, err := load(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range violations(g, module, rules) {
		t.Error(v)
	}
}

// A loader that finds nothing would make every rule hold.
func TestLoadFindsWhatIsThere(t *testing.T) {
	root, _ := moduleRoot(t)
	g, err := load(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range []string{"cmd/gantline", "internal/block", "internal/record"} {
		if _, ok := g[pkg]; !ok {
			t.Errorf("%s was not found among %d packages", pkg, len(g))
		}
	}
	if !slices.Contains(g["internal/block"], "errors") {
		t.Errorf("imports of internal/block are incomplete: %v", g["internal/block"])
	}
}

// Each rule is broken once, in a graph made for that, and must say so; and what the rules allow must pass.
func TestCheckerFindsBrokenRules(t *testing.T) {
	const m = "example"
	legal := graph{
		"cmd/app":           {m + "/internal/cli", "os"},
		"internal/cli":      {m + "/internal/node", m + "/internal/demo", m + "/internal/manager", m + "/internal/store"},
		"internal/demo":     {m + "/internal/node", m + "/internal/manager"},
		"internal/node":     {m + "/internal/volume", m + "/internal/control", m + "/internal/journal", "time"},
		"internal/volume":   {m + "/internal/block", m + "/internal/record", "time"},
		"internal/sender":   {m + "/internal/wire", m + "/internal/record"},
		"internal/receiver": {m + "/internal/wire", m + "/internal/block"},
		"internal/record":   {"errors", "hash/crc32"},
		"test/system":       {m + "/internal/node", m + "/internal/manager"},
		"bench":             {"os/exec", m + "/bench/load"},
	}
	if got := violations(legal, m, rules); len(got) != 0 {
		t.Errorf("legal imports were refused:\n%s", strings.Join(got, "\n"))
	}

	for _, broken := range []struct{ pkg, imported string }{
		{"internal/block", m + "/internal/record"},
		{"internal/control", m + "/internal/block"},
		{"internal/record", "os"},
		{"internal/record", "time"},
		{"internal/journal", m + "/internal/control"},
		{"internal/journal", m + "/internal/volume"},
		{"internal/queue", m + "/internal/journal"},
		{"internal/copier", m + "/internal/manager"},
		{"internal/copier", m + "/internal/volume"},
		{"internal/sender", m + "/internal/receiver"},
		{"internal/sender", m + "/internal/journal"},
		{"internal/receiver", m + "/internal/sender"},
		{"internal/receiver", m + "/internal/apply"},
		{"internal/apply", m + "/internal/receiver"},
		{"internal/nbd", m + "/internal/volume"},
		{"internal/route", m + "/internal/gateway"},
		{"internal/gateway", m + "/internal/node"},
		{"internal/gateway", m + "/internal/manager"},
		{"internal/node", m + "/internal/store"},
		{"internal/node", m + "/internal/demo"},
		{"internal/demo", m + "/internal/cli"},
		{"bench", m + "/internal/nbd"},
	} {
		got := violations(graph{broken.pkg: {broken.imported}}, m, rules)
		if len(got) == 0 {
			t.Errorf("%s may import %s, and must not", broken.pkg, broken.imported)
			continue
		}
		if want := broken.pkg + " imports " + broken.imported + ": "; !strings.HasPrefix(got[0], want) {
			t.Errorf("the report does not name the import: %q", got[0])
		}
	}
}

func TestEveryRuleHasItsReason(t *testing.T) {
	for i, r := range rules {
		if len(r.why) < 20 || len(r.from) == 0 || len(r.deny) == 0 {
			t.Errorf("rule %d is incomplete: %+v", i, r)
		}
	}
}
