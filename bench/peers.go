package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// startNbdkit serves a file with nbdkit's file plugin, which has no copy and no journal.
func startNbdkit(ctx context.Context, dir, file string) (*process, endpoint, error) {
	e := endpoint{socket: filepath.Join(dir, "nbdkit.sock"), export: "v"}
	p, err := start("nbdkit", "nbdkit", "--foreground", "--unix", e.socket, "file", "file="+file)
	if err != nil {
		return nil, e, err
	}
	err = p.waitSocket(ctx, e.socket)
	return p, e, err
}

// startQemuNbd serves a file with qemu-nbd, cached by the page cache as it does by default.
func startQemuNbd(ctx context.Context, dir, file string) (*process, endpoint, error) {
	e := endpoint{socket: filepath.Join(dir, "qemu-nbd.sock"), export: "v"}
	p, err := start("qemu-nbd", "qemu-nbd", "--format=raw", "--persistent", "--shared=0", "--export-name="+e.export,
		"--socket="+e.socket, file)
	if err != nil {
		return nil, e, err
	}
	err = p.waitSocket(ctx, e.socket)
	return p, e, err
}

// storageDaemon is qemu-storage-daemon serving one file, with its QMP connection.
type storageDaemon struct {
	*process
	endpoint
	qmp *qmp
}

func startStorageDaemon(ctx context.Context, dir, name, file string) (*storageDaemon, error) {
	d := &storageDaemon{endpoint: endpoint{socket: filepath.Join(dir, name+".sock"), export: "v"}}
	control := filepath.Join(dir, name+".qmp")
	for _, earlier := range []string{d.socket, control} { // each move starts its own daemons
		os.Remove(earlier)
	}
	p, err := start("qemu-storage-daemon "+name, "qemu-storage-daemon",
		"--chardev", "socket,id=control,path="+control+",server=on,wait=off",
		"--monitor", "chardev=control",
		"--blockdev", "driver=file,node-name=file,filename="+file,
		"--blockdev", "driver=raw,node-name=volume,file=file",
		"--nbd-server", "addr.type=unix,addr.path="+d.socket+",max-connections=0",
		"--export", "type=nbd,id=export,node-name=volume,name="+d.export+",writable=on")
	if err != nil {
		return nil, err
	}
	d.process = p
	if err := p.waitSocket(ctx, d.socket); err != nil {
		return d, err
	}
	d.qmp, err = dialQMP(control)
	return d, err
}

func (d *storageDaemon) stop() error {
	if d == nil {
		return nil
	}
	if d.qmp != nil {
		d.qmp.conn.Close()
	}
	return d.process.stop()
}

// Ways in which blockdev-mirror treats new writes: background copies them later and may never catch up with a busy
// host, writeBlocking writes them to both sides from the start and always gets ready.
const (
	background    = "background"
	writeBlocking = "write-blocking"
)

// mirror starts blockdev-mirror of the whole volume to another daemon's export.
func (d *storageDaemon) mirror(to endpoint, copyMode string) error {
	if err := d.qmp.execute("blockdev-add", map[string]any{
		"driver": "nbd", "node-name": "target", "export": to.export,
		"server": map[string]any{"type": "unix", "path": to.socket},
	}); err != nil {
		return err
	}
	return d.qmp.execute("blockdev-mirror", map[string]any{
		"job-id": "move", "device": "volume", "target": "target", "sync": "full", "copy-mode": copyMode,
	})
}

// handOver ends a mirror that is ready: from then on the export's requests go to the target.
func (d *storageDaemon) handOver(limit time.Duration) error {
	if err := d.qmp.execute("job-complete", map[string]any{"id": "move"}); err != nil {
		return err
	}
	return d.qmp.waitStatus("move", "concluded", limit)
}

// qmp is a connection to a QEMU monitor. Not for concurrent use.
type qmp struct {
	conn   net.Conn
	lines  *bufio.Scanner
	events []qmpMessage // came between a command and its answer
}

type qmpMessage struct {
	Event string `json:"event"`
	Data  struct {
		ID     string `json:"id"`
		Status string `json:"status"`
	} `json:"data"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

// maxQMPLine bounds one message of the monitor.
const maxQMPLine = 1 << 20

func dialQMP(path string) (*qmp, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, err
	}
	q := &qmp{conn: conn, lines: bufio.NewScanner(conn)}
	q.lines.Buffer(nil, maxQMPLine)
	if _, err := q.next(time.Now().Add(startTimeout)); err != nil { // the greeting
		return nil, err
	}
	err = q.execute("qmp_capabilities", nil)
	return q, err
}

func (q *qmp) next(deadline time.Time) (m qmpMessage, err error) {
	q.conn.SetReadDeadline(deadline)
	if !q.lines.Scan() {
		return m, fmt.Errorf("qmp: %w", errors.Join(q.lines.Err(), errors.New("no more messages")))
	}
	err = json.Unmarshal(q.lines.Bytes(), &m)
	return m, err
}

func (q *qmp) execute(command string, arguments map[string]any) error {
	message := map[string]any{"execute": command}
	if arguments != nil {
		message["arguments"] = arguments
	}
	line, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if _, err := q.conn.Write(append(line, '\n')); err != nil {
		return err
	}
	for {
		m, err := q.next(time.Now().Add(startTimeout))
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", command, err)
		case m.Error != nil:
			return fmt.Errorf("%s: %s: %s", command, m.Error.Class, m.Error.Desc)
		case m.Event != "":
			q.events = append(q.events, m)
		default:
			return nil
		}
	}
}

// waitStatus waits until a job has the status, as its events tell; an aborting job is an error.
func (q *qmp) waitStatus(job, status string, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		var m qmpMessage
		if len(q.events) > 0 {
			m, q.events = q.events[0], q.events[1:]
		} else {
			var err error
			if m, err = q.next(deadline); err != nil {
				return fmt.Errorf("job %s did not become %s: %w", job, status, err)
			}
		}
		if m.Event != "JOB_STATUS_CHANGE" || m.Data.ID != job {
			continue
		}
		switch m.Data.Status {
		case status:
			return nil
		case "aborting", "null":
			return fmt.Errorf("job %s is %s, not %s", job, m.Data.Status, status)
		}
	}
}
