package metricstest

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// Documented is a row of the tables in a document about metrics.
type Documented struct {
	Kind   string
	Labels []string
	Help   string
}

// ReadDocument reads the tables of a Markdown file, whose rows are
//
//	| `name` | kind | `label`, `label` | help |
func ReadDocument(path string) (map[string]Documented, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	rows := make(map[string]Documented)
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 4 {
			return nil, fmt.Errorf("%s: %d columns, want 4: %s", path, len(cells), line)
		}
		for i := range cells {
			cells[i] = strings.TrimSpace(strings.ReplaceAll(cells[i], "`", ""))
		}
		if _, twice := rows[cells[0]]; twice {
			return nil, fmt.Errorf("%s: %s is there twice", path, cells[0])
		}
		d := Documented{Kind: cells[1], Help: cells[3]}
		if cells[2] != "" {
			d.Labels = strings.Split(cells[2], ", ")
		}
		rows[cells[0]] = d
	}
	return rows, nil
}

// Row is the row that a metric should have in the document.
func Row(name string, f *Family) string {
	labels := ""
	if len(f.Labels) > 0 {
		labels = "`" + strings.Join(f.Labels, "`, `") + "`"
	}
	return fmt.Sprintf("| `%s` | %s | %s | %s |", name, f.Kind, labels, f.Help)
}

// Undocumented are the rows that are missing for the metrics of a program, or that say
// something else.
func Undocumented(families map[string]*Family, rows map[string]Documented) []string {
	var missing []string
	for name, f := range families {
		row, ok := rows[name]
		if !ok || row.Kind != f.Kind || row.Help != f.Help || !slices.Equal(row.Labels, f.Labels) {
			missing = append(missing, Row(name, f))
		}
	}
	slices.Sort(missing)
	return missing
}
