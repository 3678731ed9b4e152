package disk

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// change is what debugfs is to do to one file of an image.
type change struct {
	path string // in the image, without a slash in front; "." is the root
	// node makes a device file or pipe of this kind, as debugfs' mknod takes
	// it, with the numbers; nothing if empty.
	node string
	// fields are inode fields to set, with their values.
	fields []field
	xattrs map[string]string
}

type field struct{ name, value string }

// set sets a field: a mode in octal, anything else as a number.
func (c *change) set(name string, value any) {
	switch name {
	case "mode":
		c.fields = append(c.fields, field{name, fmt.Sprintf("0%o", value)})
	case "mtime":
		c.fields = append(c.fields, field{name, fmt.Sprintf("@%d", value)})
	default:
		c.fields = append(c.fields, field{name, fmt.Sprint(value)})
	}
}

func (c *change) isEmpty() bool { return c.node == "" && len(c.fields) == 0 && len(c.xattrs) == 0 }

// apply makes changes to an image. It keeps its files in the new folder temp.
func (t tools) apply(ctx context.Context, image, temp string, changes []change) error {
	if len(changes) == 0 {
		return nil
	}
	if err := os.Mkdir(temp, 0o700); err != nil {
		return err
	}
	script := filepath.Join(temp, "script")
	if err := writeScript(script, temp, changes); err != nil {
		return err
	}
	messages, err := run(ctx, t.debugfs, "-w", "-f", script, image)
	if err != nil {
		return err
	}
	// debugfs goes on after an error and ends well.
	var failed []string
	for line := range strings.Lines(messages) {
		// Its name and version come first.
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "debugfs 1.") {
			failed = append(failed, line)
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("debugfs: %s", strings.Join(failed[:min(len(failed), 5)], "; "))
	}
	return nil
}

func writeScript(script, temp string, changes []change) error {
	f, err := os.Create(script)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	for i, c := range changes {
		if err = c.write(w, filepath.Join(temp, fmt.Sprint(i))); err != nil {
			break
		}
	}
	return errors.Join(err, w.Flush(), f.Close())
}

// write writes the commands for a change; values go to files that begin with
// prefix.
func (c *change) write(w *bufio.Writer, prefix string) error {
	name, err := quote(path.Join("/", c.path))
	if err != nil {
		return err
	}
	if c.node != "" {
		// mknod takes a name in the current folder.
		dir, err := quote(path.Dir(path.Join("/", c.path)))
		if err != nil {
			return err
		}
		base, err := quote(path.Base(c.path))
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "cd %s\nmknod %s %s\n", dir, base, c.node)
	}
	for _, f := range c.fields {
		fmt.Fprintf(w, "sif %s %s %s\n", name, f.name, f.value)
	}
	n := 0
	for attr, value := range c.xattrs {
		attr, err := quote(attr)
		if err != nil {
			return err
		}
		file := fmt.Sprintf("%s.%d", prefix, n)
		n++
		if err := os.WriteFile(file, []byte(value), 0o600); err != nil {
			return err
		}
		if file, err = quote(file); err != nil {
			return err
		}
		fmt.Fprintf(w, "ea_set -f %s %s %s\n", file, name, attr)
	}
	return nil
}

// maxCommand is less than how long a line of debugfs may be, by what stands
// around a name.
const maxCommand = 8192 - 512

// quote makes a word of a debugfs command out of a name.
func quote(name string) (string, error) {
	if strings.ContainsAny(name, "\n\x00") {
		return "", fmt.Errorf("file %q: debugfs cannot change the attributes of a file with a line break in its name", name)
	}
	q := `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
	if len(q) > maxCommand {
		return "", fmt.Errorf("file %.40q...: debugfs cannot change the attributes of a file with such a long name", name)
	}
	return q, nil
}
