package snapshot

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// killVariable makes the test's program a writer: it names what to make, and
// where.
const killVariable = "GODWIT_TEST_SNAPSHOT_WRITER"

func TestMain(m *testing.M) {
	if job := os.Getenv(killVariable); job != "" {
		what, parent, _ := strings.Cut(job, " ")
		run := func() error { return killJobs[what].run(parent, func() { fmt.Println("begins") }) }
		if what == "limit" {
			run = func() error { return limitJob(parent) }
		}
		if err := run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// killJob is what a writer does that is killed. It makes "out".
type killJob struct {
	// run calls begins when it is going to write.
	run  func(parent string, begins func()) error
	want func(states [][]byte) []byte
}

var killJobs = map[string]killJob{
	"full": {
		run: func(parent string, begins func()) error {
			return writeJob(begins, filepath.Join(parent, "out"), Options{Memory: ram})
		},
		want: func([][]byte) []byte { return content(30, ramSize) },
	},
	"diff": {
		run: func(parent string, begins func()) error {
			return writeJob(begins, filepath.Join(parent, "out"), Options{Memory: ram, Base: filepath.Join(parent, "2")})
		},
		want: func([][]byte) []byte { return content(30, ramSize) },
	},
	"merge": {
		run: func(parent string, begins func()) error {
			begins()
			return Merge(context.Background(), filepath.Join(parent, "2"), filepath.Join(parent, "out"), nil)
		},
		want: func(states [][]byte) []byte { return states[2] },
	},
}

// writeJob writes all of the memory twice, as a live snapshot does.
func writeJob(begins func(), dir string, o Options) error {
	passes := [][]byte{content(29, ramSize), content(30, ramSize)}
	begins()
	w, err := Create(dir, o)
	if err != nil {
		return err
	}
	for _, p := range passes {
		for offset := 0; offset < len(p); offset += 16 * PageSize {
			if err := w.WritePages(int64(offset), p[offset:min(offset+16*PageSize, len(p))]); err != nil {
				return err
			}
		}
	}
	return w.Commit(testManifest(), sections)
}

// TestKill kills writers at random moments. There is either a whole snapshot then
// or none, the older ones are as they were, and the next writer cleans up.
func TestKill(t *testing.T) {
	const kills = 240
	for name, job := range killJobs {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			want := job.want(chainOf(t, parent, 2))
			out := filepath.Join(parent, "out")
			var took time.Duration
			for range 3 {
				if err := os.RemoveAll(out); err != nil {
					t.Fatal(err)
				}
				took = max(took, killAfter(t, name, parent, time.Hour))
			}
			whole, left := 0, 0
			for range kills / len(killJobs) {
				if err := os.RemoveAll(out); err != nil {
					t.Fatal(err)
				}
				killAfter(t, name, parent, rand.N(took))
				_, err := os.Stat(out)
				switch {
				case err == nil:
					whole++
					if !bytes.Equal(readChain(t, out), want) {
						t.Error("memory of the snapshot of a killed writer differs")
					}
					if err := Verify(context.Background(), out, nil); err != nil {
						t.Error(err)
					}
				case !errors.Is(err, fs.ErrNotExist):
					t.Fatal(err)
				default:
					left += cleanAfter(t, parent)
				}
			}
			if err := Verify(context.Background(), filepath.Join(parent, "2"), nil); err != nil {
				t.Error(err)
			}
			t.Logf("%d killed within %v: %d made the snapshot, %d left something to clean up", kills/len(killJobs), took, whole, left)
		})
	}
}

// cleanAfter has the next writer clean up, and returns how many directories there
// were.
func cleanAfter(t *testing.T, parent string) int {
	t.Helper()
	stale, err := filepath.Glob(filepath.Join(parent, ".out"+tmpInfix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	w := begin(t, filepath.Join(parent, "out"), Options{})
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
	only(t, parent, "0", "1", "2")
	return len(stale)
}

// killAfter runs a writer, kills it so long after it began, and returns how long
// it lived.
func killAfter(t *testing.T, job, parent string, after time.Duration) time.Duration {
	t.Helper()
	cmd := writer(job, parent)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	killer := time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
	defer killer.Stop()
	if err := cmd.Wait(); err != nil && said.Len() > 0 {
		t.Fatalf("writer: %v: %s", err, said.Bytes())
	}
	return time.Since(start)
}

// writer is the test's program as a writer.
func writer(job, parent string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	// The race detector else waits a second before the end.
	cmd.Env = append(os.Environ(), killVariable+"="+job+" "+parent, "GORACE=atexit_sleep_ms=0")
	return cmd
}
