package cli

import (
	"gantline/internal/control"
)

// How each kind is listed.
var (
	nodeTable = table{kind: control.KindNode, single: "node", basic: []column{
		{title: "NAME", path: "name"}, {title: "SITE", path: "site"}, {title: "STATE", path: "state"},
		{title: "ADDRESS", path: "address"}, {title: "VOLUMES", path: "volumes"}},
		more: []column{{title: "JOURNALS", path: "journals"}, {title: "NBD", path: "nbd"}, {title: "SINCE", path: "since"}}}
	gatewayTable = table{kind: control.KindGateway, single: "gateway", basic: []column{
		{title: "NAME", path: "name"}, {title: "SITE", path: "site"}, {title: "STATE", path: "state"},
		{title: "NBD", path: "nbd"}, {title: "SESSIONS", path: "sessions"}},
		more: []column{{title: "APPLIED", path: "applied"}, {title: "WANTED", path: "wanted"}, {title: "SINCE", path: "since"}}}
	volumeTable = table{kind: control.KindVolume, single: "volume", basic: []column{
		{title: "NAME", path: "name"}, {title: "SIZE", path: "size", format: bytesOf}, {title: "ROLE", path: "role"},
		{title: "MODE", path: "mode"}, {title: "GROUP", path: "group"}, {title: "STATE", path: "state"}},
		more: []column{{title: "DEVICE", path: "device"}, {title: "APPLIED", path: "applied"},
			{title: "CHANGED", path: "changed_bytes", format: bytesOf}, {title: "PRESENT", path: "present_bytes", format: bytesOf}}}
	journalTable = table{kind: control.KindJournal, single: "journal", basic: []column{
		{title: "NAME", path: "name"}, {title: "SIZE", path: "size", format: bytesOf},
		{title: "USED", path: "used_bytes", format: bytesOf}, {title: "GROUP", path: "group"}},
		more: []column{{title: "STORED", path: "stored"}, {title: "TRANSFERRED", path: "transferred"},
			{title: "APPLIED", path: "applied"}, {title: "DISCARDED", path: "discarded"}, {title: "DEVICES", path: "devices"}}}
	vvolTable = table{kind: control.KindVvol, single: "virtual volume", basic: []column{
		{title: "NAME", path: "name"}, {title: "VOLUME", path: "volume"}, {title: "SIZE", path: "size", format: bytesOf},
		{title: "EPOCH", path: "epoch"}, {title: "HOSTS", path: "hosts"}},
		more: []column{{title: "URIS", path: "uris"}}}
	groupTable = table{kind: control.KindGroup, single: "group", basic: []column{
		{title: "NAME", path: "name"}, {title: "STATE", path: "state"}, {title: "PRIMARY", path: "primary"},
		{title: "SECONDARY", path: "secondary"}, {title: "EPOCH", path: "epoch"}, {title: "LAG", path: "lag.writes"},
		{title: "LINK", path: "link"}, {title: "BLOCKED ON", path: "blocked_on"}},
		more: []column{{title: "COPY SOURCE", path: "copy_source"}, {title: "APPENDED", path: "sequence.appended"},
			{title: "APPLIED", path: "secondary_sequence.applied"}, {title: "CHANGED", path: "changed_bytes", format: bytesOf},
			{title: "WAN", path: "wan_bytes_sent", format: bytesOf}, {title: "JOURNAL", path: "journal.used_bytes", format: bytesOf}}}
	linkTable = table{kind: control.KindLink, single: "link", basic: []column{
		{title: "FROM", path: "from"}, {title: "TO", path: "to"}, {title: "STATE", path: "state"}, {title: "RTT MS", path: "rtt_ms"},
		{title: "CONNECTIONS", path: "connections"}, {title: "LIMIT", path: "limit", format: bytesOf},
		{title: "SENT", path: "sent_bytes", format: bytesOf}},
		more: []column{{title: "ADDRESS", path: "address"}, {title: "GROUPS", path: "groups"}}}
	pairTable = table{kind: "pairs", single: "pair", name: "primary", basic: []column{
		{title: "GROUP", path: "group"}, {title: "PRIMARY", path: "primary"}, {title: "SECONDARY", path: "secondary"},
		{title: "SIZE", path: "size", format: bytesOf}, {title: "STATE", path: "state"}}}
	operationTable = table{kind: control.KindOperation, single: "operation", name: "id", basic: []column{
		{title: "ID", path: "id"}, {title: "KIND", path: "kind"}, {title: "OBJECT", path: "object"}, {title: "PHASE", path: "phase"},
		{title: "PERCENT", path: "percent"}, {title: "ERROR", path: "error"}}}
	migrationTable = table{kind: control.KindMigration, single: "move", name: "id", basic: []column{
		{title: "ID", path: "id"}, {title: "GROUP", path: "group"}, {title: "SOURCE", path: "source"}, {title: "TARGET", path: "target"},
		{title: "PHASE", path: "phase"}, {title: "PRESENT", path: "regions.present"}, {title: "REGIONS", path: "regions.total"},
		{title: "PAUSE MS", path: "pause_ms"}, {title: "ERROR", path: "error"}},
		more: []column{{title: "CUT", path: "cut"}, {title: "EPOCH", path: "epoch"}, {title: "BLOCKED ON", path: "blocked_on"},
			{title: "WAN", path: "wan_bytes_sent", format: bytesOf}}}
)
