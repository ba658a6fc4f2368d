package control

import (
	"net"
	"net/netip"
)

// CheckLoopback refuses an address that others could reach. Everything is plain text until peers have certificates:
// whoever reached a port could read and write every volume.
func CheckLoopback(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return Errorf(KindUsage, "address %q: %v", address, err)
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return Errorf(KindUsage, "address %q: bad port", address)
	}
	if host == "localhost" {
		return nil
	}
	ip, err := netip.ParseAddr(host)
	if err == nil && ip.IsLoopback() {
		return nil
	}
	return Errorf(KindRefused, "address %q is not a loopback address, and encrypted connections are not built yet: "+
		"anybody who reaches it could read and write the volumes. Listen on 127.0.0.1 or ::1 "+
		"(and tunnel from elsewhere)", address)
}
