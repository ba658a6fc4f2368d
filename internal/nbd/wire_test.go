package nbd

import (
	"encoding/binary"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"gantline/internal/block"
)

// peer speaks NBD byte by byte, also wrongly.
type peer struct {
	t    *testing.T
	sock net.Conn
}

func (r *rig) peer(t *testing.T) *peer {
	t.Helper()
	sock, err := net.Dial(r.network, r.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sock.Close() })
	sock.SetDeadline(time.Now().Add(20 * time.Second))
	return &peer{t, sock}
}

// join makes bytes of strings, bytes and numbers.
func join(parts ...any) (out []byte) {
	for _, x := range parts {
		switch x := x.(type) {
		case string:
			out = append(out, x...)
		case []byte:
			out = append(out, x...)
		default:
			out, _ = binary.Append(out, binary.BigEndian, x)
		}
	}
	return out
}

func (p *peer) send(parts ...any) {
	p.t.Helper()
	if _, err := p.sock.Write(join(parts...)); err != nil {
		p.t.Errorf("sending: %v", err)
	}
}

func (p *peer) read(n int) []byte {
	p.t.Helper()
	buf := make([]byte, n)
	if _, err := io.ReadFull(p.sock, buf); err != nil {
		p.t.Fatalf("reading %d bytes: %v", n, err)
	}
	return buf
}

// gone checks that the server ends the connection, and says nothing before.
func (p *peer) gone() {
	p.t.Helper()
	rest, err := io.ReadAll(p.sock)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		p.t.Error("the server keeps the connection")
	}
	if len(rest) != 0 {
		p.t.Errorf("unexpected bytes %x", rest)
	}
}

func (p *peer) hello(flags uint32) *peer {
	p.t.Helper()
	got := p.read(18)
	if string(got[:16]) != "NBDMAGICIHAVEOPT" || binary.BigEndian.Uint16(got[16:]) != 3 {
		p.t.Fatalf("greeting %x", got)
	}
	p.send(flags)
	return p
}

func (p *peer) option(opt uint32, data ...any) {
	p.t.Helper()
	body := join(data...)
	p.send(magicOption, opt, uint32(len(body)), body)
}

// replies reads the replies to an option, the last one included.
func (p *peer) replies(opt uint32) (kinds []uint32, bodies []string) {
	p.t.Helper()
	for {
		hdr := p.read(optReplySize)
		if binary.BigEndian.Uint64(hdr) != magicOptReply || binary.BigEndian.Uint32(hdr[8:]) != opt {
			p.t.Fatalf("option reply %x to option %d", hdr, opt)
		}
		kind := binary.BigEndian.Uint32(hdr[12:])
		kinds = append(kinds, kind)
		bodies = append(bodies, string(p.read(int(binary.BigEndian.Uint32(hdr[16:])))))
		if kind == repAck || kind&repErrBit != 0 {
			return kinds, bodies
		}
	}
}

func str(s string) []any { return []any{uint32(len(s)), s} }

func (p *peer) begin(export string, structured bool) *peer {
	p.t.Helper()
	p.hello(3)
	if structured {
		p.option(optStructuredReply)
		p.replies(optStructuredReply)
		p.option(optSetMetaContext, append(append(str(export), uint32(1)), str(contextAlloc)...)...)
		p.replies(optSetMetaContext)
	}
	p.option(optGo, append(str(export), uint16(0))...)
	if kinds, bodies := p.replies(optGo); kinds[len(kinds)-1] != repAck {
		p.t.Fatalf("GO: %x %q", kinds, bodies)
	}
	return p
}

func (p *peer) request(flags, kind uint16, cookie, offset uint64, length uint32) {
	p.t.Helper()
	p.send(magicRequest, flags, kind, cookie, offset, length)
}

// answer reads a simple reply or one structured chunk.
func (p *peer) answer() (cookie uint64, no uint32, text string) {
	p.t.Helper()
	hdr := p.read(simpleSize)
	cookie = binary.BigEndian.Uint64(hdr[8:])
	if binary.BigEndian.Uint32(hdr) == magicSimple {
		return cookie, binary.BigEndian.Uint32(hdr[4:]), ""
	}
	if binary.BigEndian.Uint32(hdr) != magicStructured || binary.BigEndian.Uint16(hdr[4:]) != replyDone {
		p.t.Fatalf("reply %x", hdr)
	}
	body := p.read(int(binary.BigEndian.Uint32(p.read(4))))
	if binary.BigEndian.Uint16(hdr[6:]) == replyError {
		return cookie, binary.BigEndian.Uint32(body), string(body[6:])
	}
	return cookie, 0, string(body)
}

func oneExport(size int64, m block.Target) map[string]Export {
	return map[string]Export{"a": {Size: size, Target: m, Description: "an export"}}
}

func TestNegotiation(t *testing.T) {
	r := newRig(t, "unix", Options{}, oneExport(1<<20, newMemory(1<<20)))
	p := r.peer(t).hello(3)
	meta := func(name string, queries ...string) []any {
		data := append(str(name), uint32(len(queries)))
		for _, q := range queries {
			data = append(data, str(q)...)
		}
		return data
	}
	for _, x := range []struct {
		what string
		opt  uint32
		data []any
		want []uint32
	}{
		{"TLS", optStartTLS, nil, []uint32{repErrUnsup}},
		{"unknown option", 77, []any{"data"}, []uint32{repErrUnsup}},
		{"extended headers", 11, nil, []uint32{repErrUnsup}},
		{"list", optList, nil, []uint32{repServer, repAck}},
		{"list with data", optList, []any{"x"}, []uint32{repErrInvalid}},
		{"meta context too early", optSetMetaContext, meta("a", contextAlloc), []uint32{repErrInvalid}},
		{"structured with data", optStructuredReply, []any{"x"}, []uint32{repErrInvalid}},
		{"structured", optStructuredReply, nil, []uint32{repAck}},
		{"list contexts", optListMetaContext, meta("a"), []uint32{repMetaContext, repAck}},
		{"list base contexts", optListMetaContext, meta("a", "base:"), []uint32{repMetaContext, repAck}},
		{"list other contexts", optListMetaContext, meta("a", "qemu:"), []uint32{repAck}},
		{"set context", optSetMetaContext, meta("a", "x:y", contextAlloc), []uint32{repMetaContext, repAck}},
		{"set none", optSetMetaContext, meta("a"), []uint32{repAck}},
		{"set context of nothing", optSetMetaContext, meta("b", contextAlloc), []uint32{repErrUnknown}},
		{"count too high", optSetMetaContext, append(str("a"), uint32(2)), []uint32{repErrInvalid}},
		{"too many queries", optSetMetaContext, append(str("a"), uint32(1<<31)), []uint32{repErrTooBig}},
		{"trailing bytes", optSetMetaContext, append(meta("a"), "x"), []uint32{repErrInvalid}},
		{"info", optInfo, append(str("a"), uint16(2), infoName, infoDescription), []uint32{repInfo, repInfo, repInfo, repInfo, repAck}},
		{"plain info", optInfo, append(str("a"), uint16(0)), []uint32{repInfo, repInfo, repAck}},
		{"info on nothing", optInfo, append(str("b"), uint16(0)), []uint32{repErrUnknown}},
		{"empty name", optGo, append(str(""), uint16(0)), []uint32{repErrUnknown}},
		{"short info", optInfo, []any{uint32(9), "a"}, []uint32{repErrInvalid}},
		{"name length beyond all", optInfo, []any{uint32(1<<32 - 1), "a", uint16(0)}, []uint32{repErrInvalid}},
		{"information count", optInfo, append(str("a"), uint16(3)), []uint32{repErrInvalid}},
		{"long option", optInfo, []any{strings.Repeat("x", maxOption+1)}, []uint32{repErrTooBig}},
		{"abort", optAbort, nil, []uint32{repAck}},
	} {
		p.option(x.opt, x.data...)
		kinds, bodies := p.replies(x.opt)
		if !slices.Equal(kinds, x.want) {
			t.Errorf("%s: %x %q instead of %x", x.what, kinds, bodies, x.want)
		}
	}
	p.gone()
}

func TestExportName(t *testing.T) {
	r := newRig(t, "tcp", Options{}, oneExport(12345, newMemory(12345)))
	for flags, zeroes := range map[uint32]int{1: 124, 3: 0, 0: 124} {
		p := r.peer(t).hello(flags)
		p.option(optExportName, "a")
		got := p.read(10 + zeroes)
		if binary.BigEndian.Uint64(got) != 12345 || binary.BigEndian.Uint16(got[8:])&flagCanMultiConn == 0 {
			t.Errorf("answer %x", got)
		}
		p.request(0, cmdRead, 1, 0, 8)
		if _, no, _ := p.answer(); no != 0 || string(p.read(8)) != "\x00\x00\x00\x00\x00\x00\x00\x00" {
			t.Errorf("read failed: %d", no)
		}
		p.request(0, cmdDisc, 2, 0, 0)
		p.gone()
	}
	for _, name := range []string{"", "b", strings.Repeat("x", maxString+1)} {
		p := r.peer(t).hello(3)
		p.option(optExportName, name)
		p.gone()
	}
}

func TestHandshakeEndsAtOnceForNonsense(t *testing.T) {
	r := newRig(t, "unix", Options{}, oneExport(512, newMemory(512)))
	for name, send := range map[string]func(*peer){
		"unknown client flags": func(p *peer) { p.hello(1 << 7) },
		"option magic":         func(p *peer) { p.hello(3).send(uint64(7), uint32(1), uint32(0)) },
		"endless option":       func(p *peer) { p.hello(3).send(magicOption, optInfo, uint32(1<<32-1)) },
	} {
		t.Run(name, func(t *testing.T) {
			p := r.peer(t)
			p.t = t
			send(p)
			p.gone()
		})
	}
}

func TestMalformedRequests(t *testing.T) {
	m := newMemory(64 << 20)
	r := newRig(t, "unix", Options{}, oneExport(64<<20, m))
	p := r.peer(t).begin("a", true)
	for i, x := range []struct {
		what        string
		flags, kind uint16
		offset      uint64
		length      uint32
		want        uint32
	}{
		{"unknown command", 0, 99, 0, 0, errnoInval},
		{"resize", 0, 8, 0, 0, errnoInval},
		{"unknown flag", 1 << 9, cmdRead, 0, 512, errnoInval},
		{"DF on trim", cmdFlagDF, cmdTrim, 0, 512, errnoInval},
		{"fast zero not offered", cmdFlagFastZero, cmdWriteZeroes, 0, 512, errnoInval},
		{"read too large", 0, cmdRead, 0, maxPayload + 1, errnoInval},
		{"read beyond the end", 0, cmdRead, 64<<20 - 1, 2, errnoInval},
		{"offset beyond all", 0, cmdRead, 1<<64 - 1, 2, errnoInval},
		{"trim beyond the end", 0, cmdTrim, 64<<20 - 512, 1024, errnoInval},
		{"zero beyond the end", 0, cmdWriteZeroes, 64<<20 - 512, 1024, errnoNoSpc},
		{"status of nothing", 0, cmdBlockStatus, 0, 0, errnoInval},
		{"flush with a length", 0, cmdFlush, 0, 1, errnoInval},
		{"read of nothing", 0, cmdRead, 0, 0, 0},
		{"write of nothing", 0, cmdWrite, 0, 0, 0},
		{"read with FUA and DF", cmdFlagFUA | cmdFlagDF, cmdRead, 0, 512, 0},
		{"trim of more than fits in a payload", 0, cmdTrim, 0, 64 << 20, 0},
	} {
		p.request(x.flags, x.kind, uint64(i), x.offset, x.length)
		cookie, no, text := p.answer()
		if cookie != uint64(i) || no != x.want || no != 0 && text == "" {
			t.Errorf("%s: cookie %d, error %d %q instead of %d", x.what, cookie, no, text, x.want)
		}
	}
	// Payloads of refused writes are skipped, the next request is understood.
	for _, x := range []struct {
		offset uint64
		length uint32
		want   uint32
	}{{0, maxPayload + 1, errnoInval}, {64<<20 - 1, 70_000, errnoNoSpc}, {64<<20 - 1, 2, errnoNoSpc}} {
		p.request(0, cmdWrite, 7, x.offset, x.length)
		p.send(make([]byte, x.length))
		if _, no, _ := p.answer(); no != x.want {
			t.Errorf("write of %d at %d: %d", x.length, x.offset, no)
		}
	}
	p.request(0, cmdFlush, 8, 0, 0)
	if cookie, no, _ := p.answer(); cookie != 8 || no != 0 {
		t.Errorf("after all that: %d, %d", cookie, no)
	}
}

func TestRefusedConnectionsAndExports(t *testing.T) {
	m := newMemory(4096)
	all := oneExport(4096, m)
	all["ro"] = Export{Size: 4096, Target: m, ReadOnly: true}
	r := newRig(t, "unix", Options{}, all)
	ro := r.peer(t).begin("ro", true)
	for _, kind := range []uint16{cmdWrite, cmdTrim, cmdWriteZeroes} {
		ro.request(0, kind, 1, 0, 4)
		if kind == cmdWrite {
			ro.send(uint32(0))
		}
		if _, no, _ := ro.answer(); no != errnoPerm {
			t.Errorf("command %d on a read-only export: %d", kind, no)
		}
	}
	for name, send := range map[string]func(*peer){
		"magic":           func(p *peer) { p.send(make([]byte, requestSize)) },
		"endless payload": func(p *peer) { p.request(0, cmdWrite, 1, 0, maxWriteSkip+1) },
	} {
		t.Run(name, func(t *testing.T) {
			p := r.peer(t).begin("a", false)
			p.t = t
			send(p)
			p.gone()
		})
	}
}

// A target that answers nonsense becomes an error of the one request, not of the connection.
func TestTargetAnswersNonsense(t *testing.T) {
	m := newMemory(1 << 20)
	m.scatter = func(reqs []*block.Request, _ func(*block.Request)) {
		for _, r := range reqs {
			r.Extents = []block.Extent{{Offset: 4096, Length: 512}}
			if r.Op == block.OpRead {
				r.Data = r.Data[:1]
			}
			r.Finish(nil)
		}
	}
	p := newRig(t, "unix", Options{}, oneExport(1<<20, m)).peer(t).begin("a", true)
	for _, kind := range []uint16{cmdRead, cmdBlockStatus} {
		p.request(0, kind, 1, 0, 4096)
		if _, no, _ := p.answer(); no != errnoIO {
			t.Errorf("command %d: %d", kind, no)
		}
	}
}
