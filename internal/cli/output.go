package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"go.yaml.in/yaml/v3"

	"gantline/internal/control"
)

// column is one column of a table: a title and where its value is.
type column struct {
	title, path string
	format      func(any) string // nil: plain
}

// table is how a kind is listed; more is added by -o wide.
type table struct {
	kind   string // as in /v1/KIND
	name   string // field that names an object; default "name"
	basic  []column
	more   []column
	single string // how one is called
}

func (t table) id() string {
	if t.name == "" {
		return "name"
	}
	return t.name
}

// field finds a value by its dotted path. A path that leads nowhere gives false.
func field(v any, path string) (any, bool) {
	for part := range strings.SplitSeq(path, ".") {
		switch o := v.(type) {
		case map[string]any:
			var ok bool
			if v, ok = o[part]; !ok {
				return nil, false
			}
		case []any:
			i, err := strconv.Atoi(part)
			if err != nil || i < 0 || i >= len(o) {
				return nil, false
			}
			v = o[i]
		default:
			return nil, false
		}
	}
	return v, true
}

// decode keeps numbers as they are written.
func decode(raw []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	err := d.Decode(&v)
	return v, err
}

// plain shows a value in a table. What is not known is a dash.
func plain(v any) string {
	switch x := v.(type) {
	case nil:
		return "-"
	case string:
		if x == "" {
			return "-"
		}
		return x
	case json.Number:
		if f, err := x.Float64(); err == nil && strings.ContainsAny(x.String(), ".eE") {
			return strconv.FormatFloat(f, 'f', 1, 64)
		}
		return x.String()
	case bool:
		return strconv.FormatBool(x)
	case []any:
		parts := make([]string, len(x))
		for i := range x {
			parts[i] = plain(x[i])
			if m, ok := x[i].(map[string]any); ok {
				parts[i] = plain(m["name"])
			}
		}
		if len(parts) == 0 {
			return "-"
		}
		return strings.Join(parts, ",")
	}
	b, err := json.Marshal(v)
	if err != nil {
		return "?"
	}
	return string(b)
}

// bytesOf shows bytes in the largest unit that keeps three digits.
func bytesOf(v any) string {
	n, ok := v.(json.Number)
	if !ok {
		return plain(v)
	}
	f, err := n.Float64()
	if err != nil {
		return n.String()
	}
	return humanBytes(f)
}

func humanBytes(f float64) string {
	for _, unit := range []string{"B", "KiB", "MiB", "GiB", "TiB"} {
		if f < 1024 {
			if f == float64(int64(f)) {
				return fmt.Sprintf("%d %s", int64(f), unit)
			}
			return fmt.Sprintf("%.1f %s", f, unit)
		}
		f /= 1024
	}
	return fmt.Sprintf("%.1f PiB", f)
}

// print writes an answer in the form that -o asks for.
func (a *app) print(t table, raw json.RawMessage) error {
	switch a.output {
	case "json":
		return printJSON(a.stdout, raw)
	case "yaml":
		return printYAML(a.stdout, raw)
	}
	v, err := decode(raw)
	if err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	rows, list := v.([]any)
	if !list {
		rows = []any{v}
	}
	if a.output == "name" {
		for _, r := range rows {
			name, _ := field(r, t.id())
			fmt.Fprintln(a.stdout, plain(name))
		}
		return nil
	}
	columns := t.basic
	if a.output == "wide" {
		columns = append(columns[:len(columns):len(columns)], t.more...)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	for i, c := range columns {
		fmt.Fprint(w, tab(i), c.title)
	}
	fmt.Fprintln(w)
	for _, r := range rows {
		for i, c := range columns {
			value, _ := field(r, c.path)
			format := c.format
			if format == nil {
				format = plain
			}
			fmt.Fprint(w, tab(i), format(value))
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

func tab(i int) string {
	if i == 0 {
		return ""
	}
	return "\t"
}

// show prints one object: as a table all its fields, one a line.
func (a *app) show(t table, raw json.RawMessage) error {
	if a.output != "table" && a.output != "wide" {
		return a.print(t, raw)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if tok, err := d.Token(); err != nil || tok != json.Delim('{') {
		return fmt.Errorf("answer is not an object")
	}
	w := tabwriter.NewWriter(a.stdout, 0, 8, 2, ' ', 0)
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		var v any
		if err := d.Decode(&v); err != nil {
			return fmt.Errorf("answer: %w", err)
		}
		showField(w, fmt.Sprint(key), v)
	}
	return w.Flush()
}

func showField(w io.Writer, key string, v any) {
	if list, ok := v.([]any); ok && len(list) > 0 {
		if _, nested := list[0].(map[string]any); nested {
			for i, e := range list {
				showField(w, fmt.Sprintf("%s.%d", key, i), e)
			}
			return
		}
	}
	m, ok := v.(map[string]any)
	if !ok {
		text := plain(v)
		if strings.Contains(key, "bytes") || key == "size" {
			text = bytesOf(v)
		}
		fmt.Fprintf(w, "%s\t%s\n", key, text)
		return
	}
	parts := make([]string, 0, len(m))
	for _, k := range sortedKeys(m) {
		parts = append(parts, k+"="+plain(m[k]))
	}
	fmt.Fprintf(w, "%s\t%s\n", key, strings.Join(parts, " "))
}

func printJSON(w io.Writer, raw json.RawMessage) error {
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	_, err := fmt.Fprintln(w, strings.TrimSpace(b.String()))
	return err
}

// printYAML keeps the order of the fields: JSON is YAML, only in another style.
func printYAML(w io.Writer, raw json.RawMessage) error {
	var n yaml.Node
	if err := yaml.Unmarshal(raw, &n); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	plainStyle(&n)
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	if err := e.Encode(&n); err != nil {
		return err
	}
	return e.Close()
}

func plainStyle(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		plainStyle(c)
	}
}

// plan prints what a dry run found, and is the error of its refusals.
func (a *app) plan(raw json.RawMessage) error {
	var p control.PlanView
	if err := json.Unmarshal(raw, &p); err != nil {
		return fmt.Errorf("answer: %w", err)
	}
	switch a.output {
	case "json":
		if err := printJSON(a.stdout, raw); err != nil {
			return err
		}
	case "yaml":
		if err := printYAML(a.stdout, raw); err != nil {
			return err
		}
	default:
		for _, line := range p.Plan {
			fmt.Fprintln(a.stdout, line)
		}
		if p.SpaceBytes != nil {
			fmt.Fprintf(a.stdout, "needs %s\n", humanBytes(float64(*p.SpaceBytes)))
		}
		if p.Seconds != nil {
			fmt.Fprintf(a.stdout, "about %.0f s\n", *p.Seconds)
		}
		if p.PauseMS != nil {
			fmt.Fprintf(a.stdout, "pause about %.0f ms\n", *p.PauseMS)
		}
	}
	if len(p.Refusals) > 0 {
		return control.Errorf(control.KindRefused, "it would be refused: %s", strings.Join(p.Refusals, "; "))
	}
	return nil
}
