package archtest

// A rule forbids imports between packages of this module. Packages are named from the module's root, as in
// "internal/block"; "internal/..." is internal and all below it. A rule about a package that does not exist yet holds.
type rule struct {
	from   []string // the packages it binds
	except []string // those of them that it does not
	deny   []string // what they must not import
	allow  []string // what of it they may all the same
	std    bool     // deny names packages of the standard library instead of ours
	why    string
}

const ours = "..." // every package of the module

var (
	// dataPlane carries a host's bytes, from the device up to the copier.
	dataPlane = []string{
		"internal/block", "internal/record", "internal/nbd", "internal/journal", "internal/queue", "internal/volume",
		"internal/wire", "internal/sender", "internal/receiver", "internal/apply", "internal/copier", "internal/pace", "internal/sock",
		"internal/latency",
	}
	// What all of it may use: words, and the one way to count how long something takes.
	vocabulary = []string{"internal/block", "internal/record", "internal/latency"}
)

var rules = []rule{
	{
		from: []string{"internal/block", "internal/record", "internal/control", "internal/latency"},
		deny: []string{ours},
		why:  "they are the vocabulary that everything else shares: an import of ours there ends in a cycle, or in a word that means two things",
	},
	{
		from: []string{"internal/record"},
		deny: []string{"os", "net", "syscall", "time", "math/rand", "math/rand/v2"},
		std:  true,
		why:  "the rules of records and epochs are pure, so that histories can be played against them without files and clocks",
	},
	{
		from: dataPlane,
		deny: []string{"internal/control", "internal/store", "internal/manager", "internal/node", "internal/cli"},
		why:  "hosts are served and copying goes on while manager and store are away, so nothing on that path may need them",
	},
	{
		from:  []string{"internal/sender"},
		deny:  []string{ours},
		allow: append([]string{"internal/wire"}, vocabulary...),
		why:   "a sender knows the stream and nothing else: which log it follows and who receives are given to it through small interfaces",
	},
	{
		from:  []string{"internal/receiver"},
		deny:  []string{ours},
		allow: append([]string{"internal/wire"}, vocabulary...),
		why:   "a receiver knows the stream and the log it stores to, by a small interface; it does not know the sender's code, only its frames",
	},
	{
		from: []string{"internal/receiver"},
		deny: []string{"internal/apply"},
		why:  "receiver and apply meet only at the log: what is stored is a promise kept by the log, not a call from one to the other",
	},
	{
		from: []string{"internal/apply"},
		deny: []string{"internal/receiver", "internal/sender", "internal/wire"},
		why:  "receiver and apply meet only at the log: what may be applied follows from stored records, never from what a peer says now",
	},
	{
		from: []string{"internal/journal", "internal/queue"},
		deny: []string{"internal/volume", "internal/wire", "internal/nbd", "internal/sender", "internal/receiver"},
		why:  "a log is below all that uses it: it stores records and knows neither volumes nor peers",
	},
	{
		from:  []string{"internal/queue"},
		deny:  []string{ours},
		allow: vocabulary,
		why:   "the log in memory has its devices and maps given to it: it keeps records, numbers and marks, and does no more with them",
	},
	{
		from: []string{"internal/nbd", "internal/wire"},
		deny: []string{"internal/journal", "internal/volume", "internal/route", "internal/gateway", "internal/sender", "internal/receiver"},
		why:  "a protocol's edge hands requests to a block.Target or a handler: whatever stands behind, the same edge serves it",
	},
	{
		from: []string{"internal/copier"},
		deny: []string{"internal/volume", "internal/migrate", "internal/sender", "internal/receiver"},
		why:  "one copier serves initial copy, resync and migration; it is given its work, so it cannot grow a special case for one of them",
	},
	{
		from: []string{"internal/route"},
		deny: []string{"internal/manager", "internal/store", "internal/node", "internal/gateway", "internal/cli"},
		why:  "gateway, agent and node route by the same rules, from routes that are given to them",
	},
	{
		from:   []string{ours},
		except: []string{"internal/cli", "internal/demo", "test/..."},
		deny:   []string{"internal/node"},
		why:    "the node is where parts are put together: who imports it depends on all of them; only what starts nodes may",
	},
	{
		from:   []string{ours},
		except: []string{"internal/cli", "internal/demo", "test/..."},
		deny:   []string{"internal/manager"},
		why:    "the manager is reached by its HTTP interface; only what starts managers imports it",
	},
	{
		from:   []string{ours},
		except: []string{"internal/manager", "internal/cli", "internal/demo", "test/..."},
		deny:   []string{"internal/store"},
		why:    "control.Store is the interface; which store stands behind it is the starter's choice",
	},
	{
		from:   []string{ours},
		except: []string{"internal/cli", "test/..."},
		deny:   []string{"internal/demo"},
		why:    "nothing may depend on the demo",
	},
	{
		from:   []string{ours},
		except: []string{"cmd/...", "test/..."},
		deny:   []string{"internal/cli"},
		why:    "commands are the outermost layer",
	},
	{
		from:  []string{"bench/..."},
		deny:  []string{ours},
		allow: []string{"bench/..."},
		why:   "the benchmark measures what users get: processes, commands and NBD, the same for us and for our peers",
	},
}
