package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/machine"
)

// The ports at which somebody of the host echoes, and throws away.
const (
	echoPort    = 7
	discardPort = 9
)

// vsockCases are the benchmarks of the socket device. QEMU has none without vhost.
func vsockCases() []Case {
	one := func(v micro.Vsock) func(context.Context, *Env) (*Result, error) {
		v.LocalPort, v.Stop, v.EventIdx = 1000, micro.AnyStop(), true
		v.Port = echoPort
		if v.Mode == micro.SendStream {
			v.Port = discardPort
		}
		return func(ctx context.Context, e *Env) (*Result, error) { return runVsock(ctx, e, v) }
	}
	return []Case{
		{Name: "vsock-echo", What: "64 bytes from the guest to a program of the host and back", Run: one(micro.Vsock{Size: 64, Count: 10_000, Depth: 4})},
		{Name: "vsock-send", What: "a stream from the guest to a program of the host, 64 KiB at a time", Run: one(micro.Vsock{
			Mode: micro.SendStream, Size: 64 << 10, Count: 10_000, Depth: 16,
		})},
	}
}

// runVsock compares godwit with the same between two programs of the host.
func runVsock(ctx context.Context, e *Env, v micro.Vsock) (*Result, error) {
	all := v.Count
	if e.Quick {
		v.Count /= 10
	}
	path := filepath.Join(e.Dir, "vsock")
	close, err := answer(path)
	if err != nil {
		return nil, err
	}
	defer close()
	guest, err := newDeviceGuest(e, v.ELF)
	if err != nil {
		return nil, err
	}
	defer guest.close()
	r := newDeviceResult("round")
	if v.Mode == micro.RoundTrip {
		r.addLatencies()
	}
	socket := machine.Config{NoRNG: true, Vsock: func() (string, error) { return path, nil }}
	err = r.compete(ctx, e, e.rounds(11, 3),
		contestant{name: loopName, run: func(context.Context) ([]float64, error) { return r.samplesOf(plainSocketLoop(path, v)) }},
		contestant{name: godwitName, run: func(ctx context.Context) ([]float64, error) {
			return r.samplesOf(timings(guest.inMachine(ctx, socket)))
		}},
	)
	if err != nil {
		return nil, err
	}
	return r, r.countDeviceAllocations(e, all, func(rounds uint64) (*deviceRun, error) {
		v.Count = rounds
		guest, err := newDeviceGuest(e, v.ELF)
		if err != nil {
			return nil, err
		}
		defer guest.close()
		return guest.inMachine(ctx, socket)
	})
}

// portPath is where the guest's connections to a port of the host arrive.
func portPath(path string, port uint32) string { return fmt.Sprintf("%s_%d", path, port) }

// answer serves both ports until the function that it returns is called.
func answer(path string) (close func(), err error) {
	echo, err := serve(portPath(path, echoPort), func(c net.Conn) { _, _ = io.Copy(onlyWriter{c}, onlyReader{c}) })
	if err != nil {
		return nil, err
	}
	discard, err := serve(portPath(path, discardPort), func(c net.Conn) {
		_, _ = io.CopyBuffer(onlyWriter{io.Discard}, onlyReader{c}, make([]byte, 256<<10))
	})
	if err != nil {
		echo.Close()
		return nil, err
	}
	return func() { echo.Close(); discard.Close() }, nil
}

// onlyReader and onlyWriter keep io.Copy from handing the work to the kernel.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

func serve(path string, f func(net.Conn)) (net.Listener, error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				defer c.Close()
				f(c) // until the other end is done
			}()
		}
	}()
	return l, nil
}

// plainSocketLoop does what the guest does, from a program of the host.
func plainSocketLoop(path string, v micro.Vsock) ([]float64, error) {
	c, err := net.Dial("unix", portPath(path, v.Port))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	buf := make([]byte, v.Size)
	loop := newPlainLoop(0, v.Count)
	for range v.Count {
		err := loop.step(func() error {
			_, err := c.Write(buf)
			if err == nil && v.Mode == micro.RoundTrip {
				_, err = io.ReadFull(c, buf)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return loop.samples(), nil
}
