package control

import (
	"net/netip"
	"regexp"
	"strings"
)

var nameSyntax = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// CheckName refuses a name that is not [a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?.
func CheckName(kind, name string) error {
	if nameSyntax.MatchString(name) {
		return nil
	}
	return Errorf(KindUsage,
		"%s name %q: a name has 1 to 63 of a-z, 0-9 and '-', and neither begins nor ends with '-'", kind, name)
}

// CheckNode accepts N, and N.C for a cluster of a node.
func CheckNode(name string) error {
	node, cluster, has := strings.Cut(name, ".")
	if err := CheckName("node", node); err != nil {
		return err
	}
	if has {
		return CheckName("cluster", cluster)
	}
	return nil
}

// SplitOwned takes NODE/NAME apart and checks both halves.
func SplitOwned(kind, full string) (node, name string, err error) {
	node, name, ok := strings.Cut(full, "/")
	if !ok {
		return "", "", Errorf(KindUsage, "%s %q: it is named NODE/NAME", kind, full)
	}
	if err := CheckNode(node); err != nil {
		return "", "", err
	}
	if err := CheckName(kind, name); err != nil {
		return "", "", err
	}
	return node, name, nil
}

// NodeOf is the node part of NODE/NAME.
func NodeOf(full string) string {
	node, _, _ := strings.Cut(full, "/")
	return node
}

// BaseOf is the name part of NODE/NAME.
func BaseOf(full string) string {
	_, name, _ := strings.Cut(full, "/")
	return name
}

// CheckHost accepts an IP address or a TLS name.
func CheckHost(name string) error {
	if _, err := netip.ParseAddr(name); err == nil {
		return nil
	}
	if len(name) == 0 || len(name) > 253 {
		return Errorf(KindUsage, "host %q: it is a TLS name or an IP address", name)
	}
	for _, c := range name {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '.', c == '_':
		default:
			return Errorf(KindUsage, "host %q: it is a TLS name or an IP address", name)
		}
	}
	return nil
}
