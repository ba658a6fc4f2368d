package nbd

import (
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"gantline/internal/block"
)

func optBytes(opt uint32, data []byte) []byte { return join(magicOption, opt, uint32(len(data)), data) }

// FuzzServer feeds a connection with any bytes from the first on. It must end, leave no goroutine and close what it
// has opened; nothing beyond the export may be reached (the target would panic).
func FuzzServer(f *testing.F) {
	goA := optBytes(optGo, join(uint32(1), "a", uint16(0)))
	start := join(uint32(3), optBytes(optStructuredReply, nil),
		optBytes(optSetMetaContext, join(uint32(1), "a", uint32(1), uint32(15), contextAlloc)), goA)
	request := func(flags, kind uint16, offset uint64, length uint32) []byte {
		return join(magicRequest, flags, kind, uint64(7), offset, length)
	}
	f.Add(start)
	f.Add(join(uint32(3), optBytes(optList, nil), optBytes(optInfo, join(uint32(1), "a", uint16(2), infoName, infoDescription)), optBytes(optAbort, nil)))
	f.Add(join(uint32(0), optBytes(optExportName, []byte("a")), request(0, cmdRead, 0, 512)))
	f.Add(join(uint32(3), optBytes(optListMetaContext, join(uint32(1), "a", uint32(0))), optBytes(optStartTLS, nil)))
	f.Add(join(start, request(0, cmdRead, 0, 4096), request(0, cmdWrite, 1, 5), "hello", request(0, cmdFlush, 0, 0), request(0, cmdDisc, 0, 0)))
	f.Add(join(start, request(0, cmdBlockStatus, 0, 65536), request(cmdFlagReqOne, cmdBlockStatus, 0, 65536), request(0, cmdTrim, 0, 512)))
	f.Add(join(start, request(cmdFlagNoHole, cmdWriteZeroes, 512, 512), request(0, cmdCache, 0, 512), request(0, 99, 0, 0)))
	f.Add(join(start, request(0, cmdWrite, 0, 60_000), strings.Repeat("x", 50_000)))
	f.Add(join(start, request(0, cmdWrite, 0, 1<<31), "x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m := newMemory(64 << 10)
		exports := &catalog{all: map[string]Export{"a": {Size: 64 << 10, Target: m, Description: "d"}}}
		s := NewServer(Options{Exports: exports, MaxRequests: 4, HandshakeTimeout: 5 * time.Second, Log: slog.New(slog.DiscardHandler)})
		near, far := net.Pipe()
		s.start(context.Background(), far)
		go io.Copy(io.Discard, near)
		near.Write(data)
		near.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Fatal(err)
		}
		if open, closed := exports.counts(); open != closed {
			t.Fatalf("%d exports opened, %d closed", open, closed)
		}
	})
}

// FuzzClient answers a client with any bytes. Whatever comes, every request completes once and the client ends.
func FuzzClient(f *testing.F) {
	rep := func(opt, kind uint32, data []byte) []byte {
		return join(magicOptReply, opt, kind, uint32(len(data)), data)
	}
	hello := join(magicServer, magicOption, uint16(3))
	goes := join(rep(optGo, repInfo, join(infoExport, uint64(64<<10), uint16(0xffff))), rep(optGo, repAck, nil))
	full := join(hello, rep(optStructuredReply, repAck, nil),
		rep(optSetMetaContext, repMetaContext, join(uint32(1), contextAlloc)), rep(optSetMetaContext, repAck, nil), goes)
	cookie := func(id uint32) uint64 { return 1<<32 | uint64(id) }
	chunk := func(id uint32, kind uint16, data []byte) []byte {
		return join(magicStructured, replyDone, kind, cookie(id), uint32(len(data)), data)
	}
	f.Add(full)
	f.Add(join(hello, rep(optStructuredReply, repErrUnsup, []byte("no")), goes, magicSimple, uint32(0), cookie(0), strings.Repeat("d", 512)))
	f.Add(join(hello, rep(optStructuredReply, repAck, nil), rep(optSetMetaContext, repErrUnsup, nil), rep(optGo, repErrUnknown, []byte("no such"))))
	f.Add(join(full, chunk(0, replyOffsetData, join(uint64(0), strings.Repeat("d", 512))), magicSimple, uint32(0), cookie(1)))
	f.Add(join(full, chunk(0, replyOffsetHole, join(uint64(0), uint32(512))), chunk(2, replyBlockStatus, join(uint32(1), uint32(512), uint32(3)))))
	f.Add(join(full, chunk(0, replyError, join(uint32(5), uint16(3), "bad")), chunk(1, replyErrorOffset, join(uint32(28), uint16(0), uint64(0)))))
	f.Add(join(full, chunk(0, replyOffsetData, join(uint64(1<<63), "x")), chunk(9, replyNone, nil)))
	f.Add(join(full, magicStructured, replyDone, replyBlockStatus, cookie(2), uint32(1<<32-1)))
	f.Fuzz(func(t *testing.T, data []byte) {
		near, far := net.Pipe()
		go io.Copy(io.Discard, far)
		go func() {
			far.Write(data)
			far.Close()
		}()
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		c, err := newClient(ctx, near, "a")
		if err != nil {
			near.Close()
			return
		}
		done := make(one, 4)
		c.Submit([]*block.Request{
			{Op: block.OpRead, Length: 512, Data: make([]byte, 512), Completer: done},
			{Op: block.OpWrite, Length: 512, Data: make([]byte, 512), Completer: done},
			{Op: block.OpExtents, Length: 512, Completer: done},
		})
		for range 3 {
			select {
			case <-done:
			case <-ctx.Done():
				t.Fatal("a request was never completed")
			}
		}
		c.Close()
		if len(done) != 0 {
			t.Fatal("a request completed twice")
		}
	})
}
