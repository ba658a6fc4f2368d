package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"gantline/internal/control"
)

const maxConfig = 1 << 20 // bytes of a file

// setting is one key of a role: a flag --key, a variable GANTLINE_KEY, a key of its YAML file.
type setting struct {
	key, def, usage string
	list            bool // may be given several times; by comma in the variable
}

var commonSettings = []setting{
	{key: "data-dir", usage: "what the process needs to restart (default /var/lib/gantline/ROLE-NAME)"},
	{key: "http", usage: "address of /livez, /readyz and /metrics"},
	{key: "log-level", def: "info", usage: "debug, info, warn or error"},
	{key: "tls-ca", usage: "not built yet"}, {key: "tls-cert", usage: "not built yet"}, {key: "tls-key", usage: "not built yet"},
}

var roleSettings = map[string][]setting{
	"manager": {
		{key: "listen", def: "127.0.0.1:10820", usage: "address of the HTTP interface"},
		{key: "store", def: "bolt", usage: "bolt, in the data directory"},
	},
	"node": {
		{key: "name", usage: "the node's name"},
		{key: "site", usage: "label of the site"},
		{key: "manager", def: defaultManager, usage: "manager's URL, several by comma"},
		{key: "listen", def: "127.0.0.1:10821", usage: "address for frames; may be repeated", list: true},
		{key: "peer-listen", usage: "address for frames of other nodes (default: --listen)"},
		{key: "advertise", usage: "HOST:PORT that others dial"},
		{key: "nbd", usage: "address of the node's own NBD exports"},
		{key: "nbd-unix", usage: "unix socket of the node's own NBD exports"},
		{key: "cluster", usage: "not built yet", list: true},
		{key: "memory", def: "512MiB", usage: "memory for caches"},
	},
	"gateway": {
		{key: "name", usage: "the gateway's name"},
		{key: "site", usage: "label of the site"},
		{key: "manager", def: defaultManager, usage: "manager's URL, several by comma"},
		{key: "nbd", def: "127.0.0.1:10809", usage: "address where hosts open virtual volumes"},
		{key: "nbd-unix", usage: "unix socket where hosts open virtual volumes"},
		{key: "hold", def: "60s", usage: "how long requests wait for a node or a route before they fail; 0: for ever"},
	},
}

func settingsOf(role string) []setting {
	return append(slices.Clone(roleSettings[role]), commonSettings...)
}

// settings are the values in force for one process.
type settings struct {
	role   string
	values map[string][]string
	from   map[string]string // where each value stands: flag, variable, file or default
}

func (s *settings) get(key string) string {
	if v := s.values[key]; len(v) > 0 {
		return v[0]
	}
	return ""
}

func (s *settings) list(key string) []string { return s.values[key] }

func variable(key string) string {
	return "GANTLINE_" + strings.ToUpper(strings.ReplaceAll(key, "-", "_"))
}

// addSettings makes the flags of a role. --manager is everybody's already.
func addSettings(c *cobra.Command, role string) {
	c.Flags().String("config", "", "YAML file with the same keys (default /etc/gantline/"+role+".yaml if there)")
	for _, s := range settingsOf(role) {
		usage := s.usage + " (" + variable(s.key) + ")"
		switch {
		case s.key == "manager":
		case s.list:
			c.Flags().StringArray(s.key, nil, usage+defaultOf(s))
		default:
			c.Flags().String(s.key, "", usage+defaultOf(s))
		}
	}
}

func defaultOf(s setting) string {
	if s.def == "" {
		return ""
	}
	return " (default " + s.def + ")"
}

// readSettings merges: flag beats variable beats file beats default.
func (a *app) readSettings(role string, flags *pflag.FlagSet) (*settings, error) {
	if err := a.checkVariables(); err != nil {
		return nil, err
	}
	file, path, err := a.readFile(role, flags)
	if err != nil {
		return nil, err
	}
	out := &settings{role: role, values: map[string][]string{}, from: map[string]string{}}
	for _, s := range settingsOf(role) {
		set := func(from string, values ...string) { out.values[s.key], out.from[s.key] = values, from }
		f := flags.Lookup(s.key)
		env, inEnv := a.env(variable(s.key))
		switch {
		case f != nil && f.Changed:
			if list, ok := f.Value.(pflag.SliceValue); ok {
				set("flag", list.GetSlice()...)
			} else {
				set("flag", f.Value.String())
			}
		case inEnv && s.list:
			set("variable", strings.Split(env, ",")...)
		case inEnv:
			set("variable", env)
		case file[s.key] != nil:
			set(path, file[s.key]...)
		case s.def != "":
			set("default", s.def)
		}
	}
	return out, nil
}

// checkVariables refuses a variable that no role knows: a typing error would otherwise be silence.
func (a *app) checkVariables() error {
	known := map[string]bool{"GANTLINE_CONFIG": true, "GANTLINE_KILL_AT": true, "GANTLINE_STOP_AT": true, "GANTLINE_BIN": true}
	for role := range roleSettings {
		for _, s := range settingsOf(role) {
			known[variable(s.key)] = true
		}
	}
	for _, e := range a.environ() {
		name, _, _ := strings.Cut(e, "=")
		if strings.HasPrefix(name, "GANTLINE_") && !known[name] && !strings.Contains(name, "TEST") {
			return control.Errorf(control.KindUsage, "variable %s: there is no such key", name)
		}
	}
	return nil
}

func (a *app) readFile(role string, flags *pflag.FlagSet) (map[string][]string, string, error) {
	path, asked := "/etc/gantline/"+role+".yaml", false
	if env, ok := a.env("GANTLINE_CONFIG"); ok {
		path, asked = env, true
	}
	if f := flags.Lookup("config"); f != nil && f.Changed {
		path, asked = f.Value.String(), true
	}
	body, err := readLimited(path)
	if errors.Is(err, os.ErrNotExist) && !asked {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", control.Errorf(control.KindUsage, "configuration: %v", err)
	}
	values, err := parseFile(role, path, body)
	return values, path, err
}

func readLimited(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxConfig {
		return nil, fmt.Errorf("%s has %d bytes, limit %d", path, info.Size(), maxConfig)
	}
	return os.ReadFile(path)
}

func parseFile(role, path string, body []byte) (map[string][]string, error) {
	var raw map[string]yaml.Node
	if err := yaml.Unmarshal(body, &raw); err != nil {
		return nil, control.Errorf(control.KindUsage, "configuration %s: %v", path, err)
	}
	out := map[string][]string{}
	for key, node := range raw {
		i := slices.IndexFunc(settingsOf(role), func(s setting) bool { return s.key == key })
		if i < 0 {
			return nil, control.Errorf(control.KindUsage, "configuration %s: unknown key %q", path, key)
		}
		switch {
		case node.Kind == yaml.ScalarNode:
			out[key] = []string{node.Value}
		case node.Kind == yaml.SequenceNode && (settingsOf(role)[i].list || key == "manager"):
			var list []string
			if err := node.Decode(&list); err != nil {
				return nil, control.Errorf(control.KindUsage, "configuration %s: key %q: %v", path, key, err)
			}
			if key == "manager" {
				list = []string{strings.Join(list, ",")}
			}
			out[key] = list
		default:
			return nil, control.Errorf(control.KindUsage, "configuration %s: key %q: a plain value is wanted", path, key)
		}
	}
	return out, nil
}

func (s *settings) wrong(key string, err any) error {
	return control.Errorf(control.KindUsage, "%s (%s): %v", key, s.from[key], err)
}

func (s *settings) size(key string) (int64, error) {
	n, err := parseSize(s.get(key))
	if err != nil {
		return 0, s.wrong(key, err)
	}
	return n, nil
}

func (s *settings) duration(key string) (time.Duration, error) {
	text := s.get(key)
	if text == "0" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, s.wrong(key, strconv.Quote(text)+" is not a duration such as 60s")
	}
	return d, nil
}

func (s *settings) level() (slog.Level, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(s.get("log-level"))); err != nil {
		return 0, s.wrong("log-level", "it is debug, info, warn or error")
	}
	return l, nil
}

// check refuses what no role may have yet.
func (s *settings) check() error {
	for _, key := range []string{"tls-ca", "tls-cert", "tls-key", "cluster"} {
		if len(s.list(key)) > 0 {
			return control.NotBuilt("--" + key)
		}
	}
	for _, key := range []string{"listen", "peer-listen", "nbd", "http", "advertise"} {
		for _, addr := range s.list(key) {
			if addr == "" && key != "listen" {
				continue
			}
			if err := control.CheckLoopback(addr); err != nil {
				return &control.Error{Kind: control.KindOf(err), Message: key + " (" + s.from[key] + "): " + err.Error()}
			}
		}
	}
	if s.role != "manager" {
		return control.CheckName(s.role, s.get("name"))
	}
	return nil
}

func (s *settings) dataDir() string {
	if dir := s.get("data-dir"); dir != "" {
		return dir
	}
	if s.role == "manager" {
		return "/var/lib/gantline/manager"
	}
	return "/var/lib/gantline/" + s.role + "-" + s.get("name")
}
